"""The rewriting of CUDA's spellings."""

import pytest

from tests.simt.to_host import ConversionError, convert


def converted(source: str) -> str:
    """What becomes of it, in one line, after the `#line`."""
    first, rest = convert(source, "x.cu").split("\n", 1)
    assert first == '#line 1 "x.cu"'
    assert rest.count("\n") == source.count("\n")
    return " ".join(rest.split())


def resolver(kernel: str) -> str:
    return (
        f'.of("{kernel}", [&](auto... simt_arguments)'
        f" {{ return ::simt::Kernel<decltype(simt_arguments)...>::resolve({kernel}); }})"
    )


@pytest.mark.parametrize(
    "kernel",
    [
        "fir",
        "fir<float>",
        "fir<T, Tile<32, Pair<8, 4>>, (N > 4)>",
        "gpseg::cuda::fir<T, 4>",
        "Family<T, Up<2>>::kernel<3>",
    ],
)
def test_launch(kernel: str) -> None:
    assert converted(f"  {kernel}<<<grid, dim3(32, 8), bytes, s>>>(x, y);") == (
        f"::simt::Launch(grid, dim3(32, 8), bytes, s){resolver(kernel)}(x, y);"
    )


def test_launch_over_several_lines() -> None:
    source = (
        "void f() {\n  fir<T,\n      4>\n      <<<grid,\n         block>>>(\n          x);\n}\n"
    )
    assert "::simt::Launch(grid, block).of" in converted(source)


def test_shifts_and_templates_in_the_configuration() -> None:
    source = "fir<<<(n >> 3), Tile<A<B<int>>>::threads>>>(x);"
    assert "Launch((n >> 3), Tile<A<B<int>>>::threads)" in converted(source)


def test_static_arrays() -> None:
    text = converted("__shared__ alignas(16) T tile[2][ROWS][DEPTH + PAD];")
    assert text.startswith(
        "using simt_tile = T[2][ROWS][DEPTH + PAD]; auto& tile = ::simt::shared<simt_tile, 16>("
    )
    assert "using simt_last = bool; auto& last = ::simt::shared<simt_last>(" in converted(
        "__shared__ bool last;"
    )
    assert "using simt_t = Vector<T, 4>[8]; auto& t = ::simt::shared<simt_t, 16>(" in converted(
        "__shared__ __align__(16) Vector<T, 4> t[8];"
    )


def test_dynamic_array() -> None:
    assert converted("extern __shared__ __align__(16) unsigned char storage[];") == (
        'unsigned char* storage = ::simt::dynamic_shared<unsigned char>("storage");'
    )


def test_comments_and_strings_stay() -> None:
    source = '// f<<<1, 1>>>(x)\n/* __shared__ */ const char* s = "a<<<b>>>(c)";\n'
    assert convert(source, "x.cu") == '#line 1 "x.cu"\n' + source


def test_what_cannot_be_rewritten_is_named() -> None:
    with pytest.raises(ConversionError, match=r"x\.cu:2: one __shared__ array"):
        convert("\n__shared__ float a[2], b[2];", "x.cu")
