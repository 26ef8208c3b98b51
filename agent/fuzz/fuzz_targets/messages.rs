#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::lay_out("messages"),
    |data: &[u8]| targets::messages(data)
);
