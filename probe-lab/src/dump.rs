//! Reads `bpftool map dump -j`, for tests against recordings.
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Keys and values of a dump.
pub(crate) fn map_dump(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = |hex: &Value| -> Vec<u8> {
        let byte = |hex: &Value| u8::from_str_radix(hex.as_str().unwrap().trim_start_matches("0x"), 16);
        hex.as_array().unwrap().iter().map(|hex| byte(hex).unwrap()).collect()
    };
    let entries: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    entries.iter().map(|entry| (bytes(&entry["key"]), bytes(&entry["value"]))).collect()
}
