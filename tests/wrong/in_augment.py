"""Bugs in the augmentation operator."""

from __future__ import annotations

from tests.wrong.mutant import Mutant

AUGMENT = "tests/kernels/test_augment.py"
PARITY = "tests/kernels/test_augment_torchvision.py"
SLOPES = "tests/kernels/test_augment_derivatives.py"


def _bug(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    """Run without the compiled library, so that the reference answers."""
    return Mutant(f"augment-{name}", f"kernels/augment/{file}", old, new, tests, library=False)


def _native(name: str, old: str, new: str, test: str) -> Mutant:
    tests = (f"tests/kernels/test_augment_native.py::{test}",)
    return Mutant(f"augment-native-{name}", "kernels/augment/native.py", old, new, tests)


def _triton(name: str, file: str, old: str, new: str, test: str) -> Mutant:
    tests = (f"tests/kernels/test_triton_augment.py::{test}",)
    return Mutant(f"augment-triton-{name}", f"kernels/augment/{file}", old, new, tests)


RIGHT = "test_every_view_is_right_and_stays_within_its_tensors"

MUTANTS = (
    _triton(
        "steps-between-samples-in-elements",
        "kernel.py",
        "other=address + 4 * n * step_n",
        "other=address + n * step_n",
        RIGHT,
    ),
    _triton("padding-taken-for-image", "launch.py", "int(sizes_N2 is not None)", "0", RIGHT),
    _triton(
        "mean-of-the-first-block",
        "kernel_tone.py",
        "mask=part < tiles",
        "mask=part < 1",
        RIGHT,
    ),
    _triton(
        "sizes-beyond-the-padding-trusted",
        "kernel.py",
        "height = tl.minimum(tl.load(sizes_ptr + 2 * n, mask=sized != 0, other=height), height)",
        "height = tl.load(sizes_ptr + 2 * n, mask=sized != 0, other=height)",
        "test_numbers_that_no_device_refuses_lead_nowhere",
    ),
    _triton(
        "ragged-list-taken-for-contiguous",
        "launch.py",
        "[(x.data_ptr(), *x.stride(), *x.shape[1:]) for x in images]",
        "[(x.data_ptr(), *x.contiguous().stride(), *x.shape[1:]) for x in images]",
        "test_images_are_read_where_they_lie",
    ),
    _native(
        "gradient-read-as-contiguous",
        "grad_VN3SS.movedim(2, -1).contiguous() if last",
        "grad_VN3SS if last",
        "test_every_instruction_set_differentiates_each_value_and_pixel",
    ),
    _native(
        "yiq-never-asked-for",
        'settings.hue == "yiq"',
        "False",
        "test_every_instruction_set_renders_the_right_views",
    ),
    _native(
        "padding-taken-for-image",
        "table_N6[:, 4:] = sizes_N2",
        "pass",
        "test_every_instruction_set_renders_the_right_views",
    ),
    _native(
        "views-not-from-the-pool",
        "return native.pooled_empty(library, math.prod(shape), settings.dtype).view(shape)",
        "return torch.empty(shape, dtype=settings.dtype)",
        "test_views_come_from_the_pool_and_return_to_it",
    ),
    _bug(
        "rounding-adds-a-pixel",
        "reference_resize.py",
        "(stop_VN.detach() - EDGE).ceil()",
        "stop_VN.detach().ceil()",
        f"{AUGMENT}::test_rounding_of_a_box_adds_no_pixel",
    ),
    _bug(
        "contrast-about-each-channel",
        "reference_jitter.py",
        "grey(x_M3SS, weights).mean((1, 2, 3), keepdim=True)",
        "x_M3SS.mean((2, 3), keepdim=True)",
        f"{PARITY}::test_contrast_and_saturation",
    ),
    _bug(
        "hue-yiq-turned-backwards",
        "reference_jitter.py",
        "(cos_M1 - 1) * in_phase - sin_M1 * quadrature",
        "(cos_M1 - 1) * in_phase + sin_M1 * quadrature",
        f"{SLOPES}::test_invclr_s_jitter_is_exact",
    ),
    _bug(
        "no-slope-at-a-factor-of-one",
        "reference_jitter.py",
        "torch.where(factor_M111 == 1, mixed, mixed.clamp(0, 1))",
        "torch.where(factor_M111 == 1, x_M3SS, mixed.clamp(0, 1))",
        f"{SLOPES}::test_an_unchanged_factor_still_has_its_derivative",
    ),
    _bug(
        "second-derivative-of-a-constant",
        "op.py",
        "views = reference.render(images, sizes, values, codes, size, settings)",
        "views = reference.render(images, sizes, values.detach() + 0 * values, codes, size,"
        " settings)",
        f"{SLOPES}::test_the_graph_of_a_gradient_gives_the_same_gradient",
    ),
    _bug(
        "rubbish-beside-a-padded-image",
        "reference_resize.py",
        "return x_N3HW.masked_fill(~inside_N1HW, 0), sizes_N2",
        "return x_N3HW, sizes_N2",
        f"{AUGMENT}::test_a_list_a_padded_batch_and_single_images_give_the_same_views",
    ),
)
