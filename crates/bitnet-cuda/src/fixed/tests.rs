//! What the table says is what the sources have, and what a kernel is called is read back.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

#[test]
fn sizes_are_parameters_of_their_kernels() {
    for row in &TABLE {
        let places = row.places().unwrap_or_else(|| panic!("{}: {:?}", row.kernel, row.sizes));
        // The driver is given parameters by their places, and macros set them by their names.
        let (_, source) = HEADERS.iter().find(|(name, _)| *name == row.file).unwrap();
        let names = parameters(source, row.definition).unwrap();
        let found: Vec<_> = places.iter().map(|place| names[*place]).collect();
        assert_eq!(found, row.sizes, "{}", row.kernel);
        let definition = &source[source.find(row.definition).unwrap()..];
        let body = &definition[definition.find('{').unwrap()..];
        assert!(body[1..].trim_start_matches([' ', '\\', '\n']).starts_with("SIZES("), "{}", row.kernel);
    }
    let of_gemv = parameters(HEADERS[2].1, GEMV.1).unwrap();
    assert_eq!(of_gemv[..7], ["q", "w", "tokens", "scales", "y", "rows", "stride"]);
}

#[test]
fn every_kernel_of_the_table_is_in_the_module() {
    // Names of attention are made of their types by macros; all others stand in the sources.
    for row in TABLE.iter().filter(|row| row.definition != ATTEND.1) {
        let (_, source) = HEADERS.iter().find(|(name, _)| *name == row.file).unwrap();
        assert!(source.contains(&format!("({},", row.kernel)), "{}", row.kernel);
    }
}

#[test]
fn names_are_read_back_and_nothing_else_is() {
    let text = "norm_gemv_gated cols=2560 words=640 rows=6912 tiles=20 up=6912 act=0";
    assert_eq!(text.parse::<FixedKernel>().unwrap().to_string(), text);
    for wrong in [
        "",
        "gemv",
        "gemv rows=1 tiles=2 up=3",
        "gemv rows=1 tiles=2 up=3 act=0 more=1",
        "gemv rows=1 tiles=2 up=3 act=0 ",
        "gemv rows=01 tiles=2 up=3 act=0",
        "gemv rows=+1 tiles=2 up=3 act=0",
        "gemv rows=-1 tiles=2 up=3 act=0",
        "gemv rows=4294967296 tiles=2 up=3 act=0",
        "gemv tiles=2 rows=1 up=3 act=0",
        "gemv rows=1;asm tiles=2 up=3 act=0",
        "scale n=1",
    ] {
        assert!(wrong.parse::<FixedKernel>().is_err(), "{wrong}");
    }
}

/// A kernel with sizes that none of its loops divide.
fn kernel(row: &Row, more: u32) -> FixedKernel {
    let size = |name: &&str| match *name {
        "cols" => 331 + 16 * more,
        "words" => (331 + 16 * more).div_ceil(128) * 32,
        "tiles" => (331 + 16 * more).div_ceil(128),
        "heads" => 20,
        "kv_heads" => 5,
        "head_dim" => 128 + 16 * more,
        "up" => 0,
        "act" => 1,
        _ => 201 + more,
    };
    FixedKernel { kernel: row.kernel, sizes: row.sizes.iter().map(size).collect() }
}

#[test]
fn every_kernel_is_compiled_alone_and_for_its_sizes() {
    if let Err(why) = nvrtc::compiler() {
        assert!(std::env::var("REQUIRE_NVRTC").as_deref() != Ok("1"), "{why}");
        return println!("not run: {why}");
    }
    // A section of code for each kernel is named by it.
    let kernels = |code: &[u8]| {
        let mut names: Vec<String> = code
            .split(|byte| *byte == 0)
            .filter_map(|text| std::str::from_utf8(text).ok()?.strip_prefix(".text.").map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        names
    };
    for row in &TABLE {
        let code = kernel(row, 0).compile("sm_90").unwrap_or_else(|e| panic!("{}: {e}", row.kernel));
        assert!(code.starts_with(b"\x7fELF"), "{}", row.kernel);
        assert_eq!(kernels(&code), [row.kernel], "{}", row.kernel);
        // Other sizes make other code.
        assert_ne!(kernel(row, 7).compile("sm_90").unwrap(), code, "{}", row.kernel);
    }
    for architecture in ["sm_80", "sm_86", "sm_89", "sm_100", "sm_120"] {
        assert!(kernel(&TABLE[2], 0).compile(architecture).is_ok(), "{architecture}");
    }
    let error = kernel(&TABLE[0], 0).compile("sm_1").unwrap_err();
    assert!(matches!(&error, CompileError::Failed { why } if why.contains("-arch")), "{error}");
}
