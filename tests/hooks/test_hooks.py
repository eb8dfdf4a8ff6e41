"""Laws of the hooks: they leave nothing behind, change nothing but what they are told, and never stay silent."""

from dataclasses import replace

import pytest
import tiny
import torch

from emerdiff_probe.errors import InterventionError, ModelError, TimestepError
from emerdiff_probe.hooks.attach import Capture, Edit, attached
from emerdiff_probe.models.loading import load_model
from emerdiff_probe.sites import find_site, list_sites
from emerdiff_probe.trajectories.denoise import conditionings, predict


@pytest.fixture(scope="module")
def site(model):
    return find_site(model, "up8.cross0.query")


@pytest.fixture(scope="module")
def run(model, latents):
    conditioning, _ = conditionings(model, latents, "", 1.0)

    def run(timestep=281, batch=1):
        return predict(model, latents.repeat(batch, 1, 1, 1), timestep, conditioning)

    return run


def keep(activation, rows, grid):
    return activation[rows]


def add_one(activation, rows, grid):
    return activation[rows] + 1


def edit(site, change=add_one, rows=None, timesteps=None):
    return Edit(site, rows, None if timesteps is None else frozenset(timesteps), change, "Test")


def test_edits_that_keep_every_site_leave_the_output_bit_equal(model, run):
    expected = run(batch=2)
    with attached(model, edits=[edit(site, keep) for site in list_sites(model)]):
        output = run(batch=2)
    assert torch.equal(output, expected)


def test_capturing_every_site_leaves_the_output_bit_equal(model, run):
    expected = run()
    with attached(model, captures=[Capture(site) for site in list_sites(model)]) as record:
        output = run()
    assert torch.equal(output, expected)
    assert len(record.tensors) == len(list_sites(model))


@pytest.mark.parametrize("site", ["up8.cross0.query", "up8.self1.heads", "down8.block0.output", "up8.resnet1.output"])
def test_an_edit_at_any_kind_of_site_changes_the_output(model, run, site):
    expected = run()
    with attached(model, edits=[edit(find_site(model, site))]):
        output = run()
    assert not torch.allclose(output, expected, atol=1e-4)
    assert torch.equal(run(), expected)


def test_editing_a_downward_block_leaves_its_skip_connection_alone(model, run):
    """Its hidden state and its last skip are one tensor."""
    down, last = find_site(model, "down8.block0.output"), find_site(model, "up8.resnet2.output")
    inputs = []
    handle = model.denoiser.get_submodule(last.path).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].clone())
    )
    try:
        run()
        with attached(model, edits=[edit(down, lambda activation, rows, grid: activation[rows] * 0)]):
            run()
    finally:
        handle.remove()
    skip = down.channels  # channels from the layer before come first, then those of the skip
    assert torch.equal(inputs[0][:, -skip:], inputs[1][:, -skip:])
    assert not torch.equal(inputs[0], inputs[1])


def test_edits_of_one_site_apply_in_the_order_given_and_captures_see_the_edited_values(model, run, site):
    def double(activation, rows, grid):
        return activation[rows] * 2

    with attached(model, captures=[Capture(site)]) as plain:
        run()
    with attached(model, edits=[edit(site), edit(site, double)], captures=[Capture(site)]) as edited:
        run()
    assert torch.equal(edited[site, 281], (plain[site, 281] + 1) * 2)


def test_a_captured_query_is_the_projection_of_the_layers_input(model, run, site):
    layer = model.denoiser.get_submodule(site.attention)
    given = []
    handle = layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        with attached(model, captures=[Capture(site)]) as record:
            run()
    finally:
        handle.remove()
    assert torch.equal(record[site, 281], layer.to_q(given[0]))


def test_heads_are_the_input_of_the_output_projection_and_output_what_it_gives(model, run):
    heads, output = (find_site(model, f"up8.cross2.{part}") for part in ("heads", "output"))
    with attached(model, captures=[Capture(heads), Capture(output)]) as record:
        run()
    projection = model.denoiser.get_submodule(output.path).to_out[0]
    assert torch.equal(projection(record[heads, 281]), record[output, 281])


def test_only_the_rows_that_an_edit_names_are_changed(model, run, site):
    with attached(model, edits=[edit(site, rows=(2, 0))], captures=[Capture(site)]) as record:
        output = run(batch=4)
    captured, expected = record[site, 281], run(batch=4)
    assert torch.equal(output[[1, 3]], expected[[1, 3]])
    assert not torch.allclose(output[[0, 2]], expected[[0, 2]], atol=1e-5)
    assert torch.allclose(captured[[0, 2]], captured[[1, 3]] + 1, atol=1e-6)


def test_rows_with_their_own_timesteps_capture_the_same_as_one_pass_each(model, latents, run, site):
    timesteps = [281, 1, 141, 1]
    wanted = Capture(site, frozenset({1, 281}))
    with attached(model, captures=[wanted]) as together:
        conditioning, _ = conditionings(model, latents, "", 1.0)
        predict(model, latents.repeat(4, 1, 1, 1), torch.tensor(timesteps), conditioning)
    for timestep, count in ((281, 1), (1, 2)):
        with attached(model, captures=[Capture(site, frozenset({timestep}))]) as alone:
            run(timestep)
        assert len(together[site, timestep]) == count
        for row in together[site, timestep]:
            assert torch.allclose(row, alone[site, timestep][0], atol=1e-5)
    assert (site, 141) not in together.tensors


def test_an_edit_acts_on_the_rows_that_run_at_its_timesteps(model, latents, site):
    conditioning, _ = conditionings(model, latents, "", 1.0)
    timesteps = torch.tensor([281, 1, 281])
    expected = predict(model, latents.repeat(3, 1, 1, 1), timesteps, conditioning)
    with attached(model, edits=[edit(site, timesteps={1})]):
        output = predict(model, latents.repeat(3, 1, 1, 1), timesteps, conditioning)
    assert torch.equal(output[[0, 2]], expected[[0, 2]])
    assert not torch.allclose(output[1], expected[1], atol=1e-5)


class Boom(Exception):
    """Raised on purpose."""


def raise_boom(*_):
    raise Boom


def raise_interrupt(*_):
    raise KeyboardInterrupt


def normal(model, run, site):
    with attached(model, edits=[edit(site)], captures=[Capture(site)]):
        run()


def exception_inside_the_block(model, run, site):
    with pytest.raises(Boom), attached(model, edits=[edit(site)], captures=[Capture(site)]):
        raise_boom(run())


def exception_inside_an_edit(model, run, site):
    with pytest.raises(Boom), attached(model, edits=[edit(site, raise_boom)]):
        run()


def interrupt_inside_an_edit(model, run, site):
    with pytest.raises(KeyboardInterrupt), attached(model, edits=[edit(site, raise_interrupt)]):
        run()


def interrupt_inside_the_block(model, run, site):
    with pytest.raises(KeyboardInterrupt), attached(model, captures=[Capture(site)]):
        raise KeyboardInterrupt


def values_of_another_shape(model, run, site):
    with pytest.raises(InterventionError, match="gave values of shape"):  # noqa: SIM117
        with attached(model, edits=[edit(site, lambda activation, rows, grid: activation[rows][:, 1:])]):
            run()


def a_site_that_is_not_there(model, run, site):
    with pytest.raises(AttributeError), attached(model, edits=[edit(site), edit(replace(site, path="nowhere"))]):
        run()


def never_fired(model, run, site):
    with pytest.raises(InterventionError), attached(model, edits=[edit(site)]):
        pass


def stopped_early(model, run, site):
    with attached(model, captures=[Capture(site)], stop_early=True):
        run()


@pytest.mark.parametrize(
    "use",
    [
        normal,
        exception_inside_the_block,
        exception_inside_an_edit,
        interrupt_inside_an_edit,
        interrupt_inside_the_block,
        values_of_another_shape,
        a_site_that_is_not_there,
        never_fired,
        stopped_early,
    ],
)
def test_the_denoiser_is_bit_identical_and_without_hooks_after(use, model, run, site):
    weights, expected = tiny.state_of(model.denoiser), run()
    attributes = {name: set(vars(module)) for name, module in model.denoiser.named_modules()}
    use(model, run, site)
    assert tiny.hooks_of(model.denoiser) == []
    assert {name: set(vars(module)) for name, module in model.denoiser.named_modules()} == attributes
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.denoiser.state_dict().items())
    assert torch.equal(run(), expected)


def test_hooks_are_there_inside_the_block(model, site):
    """Otherwise the law above could not fail."""
    with attached(model):
        assert tiny.hooks_of(model.denoiser)
    assert not tiny.hooks_of(model.denoiser)


def test_nested_blocks_unwind_one_by_one(model, run, site):
    expected = run()
    with attached(model, edits=[edit(site)]):
        outer = run()
        held = len(tiny.hooks_of(model.denoiser))
        inner = []
        with pytest.raises(Boom), attached(model, edits=[edit(site)]):  # noqa: PT012
            inner.append(run())
            raise Boom
        assert not torch.allclose(inner[0], outer, atol=1e-5)
        assert len(tiny.hooks_of(model.denoiser)) == held
        assert torch.equal(run(), outer)
    assert torch.equal(run(), expected)
    assert not tiny.hooks_of(model.denoiser)


def test_stopping_early_runs_nothing_after_the_last_captured_site(model, run, site):
    later = find_site(model, "up8.cross0.heads")
    ran = []
    handle = model.denoiser.get_submodule(later.path).register_forward_pre_hook(lambda *_: ran.append(True))
    try:
        with attached(model, captures=[Capture(site)], stop_early=True) as record:
            run()
            pytest.fail("the block goes on after the last captured site")
    finally:
        handle.remove()
    with attached(model, captures=[Capture(site)]) as whole:
        run()
    assert ran == []
    assert torch.equal(record[site, 281], whole[site, 281])


@pytest.mark.parametrize("timesteps", [{261}, {1, 981}])
def test_an_edit_whose_timestep_never_runs_is_an_error_that_says_so(model, run, site, timesteps):
    with pytest.raises(InterventionError, match=r"Test never took effect.*up8\.cross0\.query") as caught:  # noqa: SIM117
        with attached(model, edits=[edit(site, timesteps=timesteps)]):
            run(281)
    assert all(str(timestep) in str(caught.value) for timestep in timesteps)


def test_one_idle_edit_among_several_is_an_error(model, run, site):
    idle = edit(site, timesteps={1})
    with pytest.raises(InterventionError, match="and 1 more"), attached(model, edits=[edit(site), idle, idle]):
        run(281)


def test_a_capture_that_is_never_reached_is_an_error_that_lists_what_ran(model, run, site):
    with pytest.raises(TimestepError, match=r"never run at timestep 261.*281"):  # noqa: SIM117
        with attached(model, captures=[Capture(site, frozenset({281, 261}))]):
            run(281)
    with pytest.raises(TimestepError, match="none"), attached(model, captures=[Capture(site)]):
        pass


def test_an_exception_in_the_block_is_not_hidden_behind_an_idle_edit(model, site):
    with pytest.raises(Boom), attached(model, edits=[edit(site)]):
        raise Boom


def test_fused_projections_are_refused_with_the_way_out():
    fused = load_model(tiny.pocket(), device="cpu")
    site = find_site(fused, "up8.cross0.query")
    fused.pipeline.fuse_qkv_projections(vae=False)
    with pytest.raises(ModelError, match="unfuse_qkv_projections"), attached(fused, captures=[Capture(site)]):
        pytest.fail("hooks on fused projections never fire")
    fused.pipeline.unfuse_qkv_projections(vae=False)
    with attached(fused):
        assert tiny.hooks_of(fused.denoiser)


def test_one_fused_layer_is_refused_only_where_it_is_used():
    one = load_model(tiny.pocket(), device="cpu")
    site, other = find_site(one, "up8.self0.query"), find_site(one, "up8.self1.query")
    one.denoiser.get_submodule(site.attention).fuse_projections()
    with pytest.raises(ModelError, match="fused"), attached(one, edits=[edit(site)]):
        pass
    conditioning, _ = conditionings(one, torch.zeros(1, 4, 16, 16), "", 1.0)
    with attached(one, captures=[Capture(other)]):
        predict(one, torch.zeros(1, 4, 16, 16), 1, conditioning)


@pytest.mark.parametrize("path", ["", "up_blocks.1.attentions.0"])
def test_a_denoiser_compiled_in_place_is_refused_with_the_way_out(path):
    compiled = load_model(tiny.pocket(), device="cpu")
    compiled.denoiser.get_submodule(path).compile(backend="eager")
    with pytest.raises(ModelError, match="uncompiled"), attached(compiled):
        pass
    assert not tiny.hooks_of(compiled.denoiser)


def test_a_compiled_wrapper_is_refused_with_the_way_out():
    pipeline = tiny.pocket()
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    with pytest.raises(ModelError, match="compiled"), attached(load_model(pipeline, device="cpu")):
        pass
