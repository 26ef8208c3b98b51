#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(
    init: targets::lay_out("tar_entries"),
    |data: &[u8]| targets::tar_entries(data)
);
