//! Chat templates render, byte for byte, what `transformers` renders (tests/chat).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(feature = "text")]

use gradstone::tasks::{Message, Part, Prompting, Template};
use gradstone::text::{ChatTemplate, Tokenizer};
use gradstone::train::text_codec::TextCodec;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The committed goldens, and those that the environment names.
fn folders() -> Vec<PathBuf> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat");
    let more = std::env::var_os("GRADSTONE_CHAT_DIR").map(PathBuf::from);
    std::iter::once(committed).chain(more).collect()
}

fn golden(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
}

fn messages(golden: &Value, name: &str) -> Vec<Message> {
    serde_json::from_value(golden["conversations"][name].clone()).unwrap()
}

#[test]
fn every_template_renders_as_transformers_renders_it() {
    for folder in folders() {
        let golden = golden(&folder);
        let tokens: BTreeMap<String, String> =
            serde_json::from_value(golden["tokens"].clone()).unwrap();
        let (mut published, mut compared, mut refused) = (0, 0, 0);
        for (name, cases) in golden["templates"].as_object().unwrap() {
            published += usize::from(name.starts_with("published"));
            let source = std::fs::read_to_string(folder.join(name)).unwrap();
            let template = ChatTemplate::new(&source, name.as_str(), tokens.clone()).unwrap();
            let template = template.dated(golden["now"].as_str().unwrap()).unwrap();
            for case in cases.as_array().unwrap() {
                let conversation = case["conversation"].as_str().unwrap();
                let add = case["add_generation_prompt"].as_bool().unwrap();
                let rendered = template.render(&messages(&golden, conversation), add);
                match case["text"].as_str() {
                    Some(text) => assert_eq!(rendered.unwrap(), text, "{name}: {conversation}"),
                    None => {
                        let error = rendered.unwrap_err();
                        assert!(error.is_format(), "{name}: {conversation}: {error}");
                        assert!(error.to_string().starts_with(&format!("{name} line ")), "{error}");
                        refused += 1;
                    }
                }
                compared += 1;
            }
        }
        println!("{}: {published} published templates, {compared} texts", folder.display());
        assert!(published >= 10 && compared > 200 && refused > 5);
    }
}

#[test]
fn a_prompt_has_the_ids_of_transformers_and_never_two_bos() {
    let golden = golden(&folders()[0]);
    for case in golden["ids"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap()
        };
        write("tokenizer.json", &golden["tokenizer"]);
        let mut config = golden["tokens"].clone();
        config["chat_template"] = case["template"].clone();
        write("tokenizer_config.json", &config);
        let codec = |template: Template| {
            let tokenizer = Tokenizer::load(folder.path()).unwrap();
            let prompting = Prompting { template, ..Prompting::default() };
            TextCodec::new(tokenizer, &prompting, None).unwrap()
        };
        let wanted: Vec<i32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let messages = messages(&golden, "one turn");
        let text = messages[0].content.clone();
        for part in [Part::Messages(messages), Part::Text(text)] {
            assert_eq!(codec(Template::Auto).prompt(&[part]).unwrap(), wanted);
        }
        // As it is, the text gets the bos token of the post-processor; where it has one, that one stays alone.
        let plain = codec(Template::Plain);
        let ids = |text: &str| plain.prompt(&[Part::Text(text.to_owned())]).unwrap();
        assert_eq!(ids("<s>1+1=").iter().filter(|id| **id == 0).count(), 1);
        assert_eq!(ids("1+1="), ids("<s>1+1="));
        assert_eq!(ids("<s><s>1").iter().filter(|id| **id == 0).count(), 2);
    }
}
