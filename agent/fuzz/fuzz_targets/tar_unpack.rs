#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::lay_out("tar_unpack"),
    |data: &[u8]| targets::tar_unpack(data)
);
