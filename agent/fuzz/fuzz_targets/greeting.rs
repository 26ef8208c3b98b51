#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::lay_out("greeting"),
    |data: &[u8]| targets::greeting(data)
);
