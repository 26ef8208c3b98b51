#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::lay_out("compressed"),
    |data: &[u8]| targets::compressed(data)
);
