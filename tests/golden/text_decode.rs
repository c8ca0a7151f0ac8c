//! Texts of ids: strings must match exactly, both ways.

use crate::case::Outcome;
use gradstone::kernels::token_decode::{Decode, decode};
use gradstone::text::Tokenizer;
use serde_json::Value;
use std::path::Path;

const KNOWN: [&str; 8] =
    ["op", "peer", "tokenizer", "config", "source", "note", "cases", "encode_cases"];

pub fn run(path: &Path, case: &Value) -> Result<Outcome, String> {
    let fields = case.as_object().ok_or("no JSON object")?;
    if let Some(name) = fields.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("unknown field `{name}`"));
    }
    let name = case["tokenizer"].as_str().ok_or("no tokenizer is named")?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).map_err(|e| e.to_string())
    };
    let file = std::fs::read(path.with_file_name(name)).map_err(|e| format!("{name}: {e}"))?;
    put("tokenizer.json", &file)?;
    put("config.json", br#"{"eos_token_id": 0}"#)?;
    let tokenizer = Tokenizer::load(folder.path()).map_err(|e| e.to_string())?;
    let table = tokenizer.decode_table().ok_or("its decoder is no table")?;
    let list = |name: &str| case[name].as_array().ok_or(format!("no list `{name}`"));
    let ids_of = |one: &Value| -> Result<Vec<i32>, String> {
        serde_json::from_value(one["ids"].clone()).map_err(|e| e.to_string())
    };
    for one in list("cases")? {
        let ids = ids_of(one)?;
        for (skip_special, field) in [(true, "skip_special_true"), (false, "skip_special_false")] {
            let want = one[field].as_str().ok_or(format!("a case without `{field}`"))?;
            let segments = [0, ids.len()];
            let args = Decode { ids: &ids, segments: &segments, skip_special, starts: false };
            let decoded = decode(table, &args).map_err(|e| e.to_string())?;
            let got = decoded.text(0).unwrap_or_default();
            if got != want {
                return Err(format!("{ids:?} with {field} is {got:?}, wanted {want:?}"));
            }
        }
    }
    for one in list("encode_cases")? {
        let text = one["text"].as_str().ok_or("a case without text")?;
        let (got, want) = (tokenizer.encode(text).map_err(|e| e.to_string())?, ids_of(one)?);
        if got != want {
            return Err(format!("{text:?} is {got:?}, wanted {want:?}"));
        }
    }
    Ok(Outcome::Passed)
}
