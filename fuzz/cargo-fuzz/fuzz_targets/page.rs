//! libFuzzer's way into `betree_fuzz::targets::page`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| betree_fuzz::targets::page(bytes));
