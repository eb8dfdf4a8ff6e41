"""The one engine under studies, evaluations and segmenting many images: jobs over samples, into one store."""
