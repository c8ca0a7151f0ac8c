//! Text ids to text for a batch, and tokens streamed one by one, beside Hugging Face `tokenizers` in the same process;
//! codebook lookup.
//!
//! The vocabulary is made here: byte-level words of natural length (4.5 bytes on average), 50,000 of them. Lines have
//! `tokens_per_second`.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::device::cpu::pool;
use gradstone::kernels::token_decode::{Decode, Layout, Stream, VqLookup, decode, vq_lookup};
use gradstone::rng::{Sequence, Stream as Draws};
use gradstone::text::Tokenizer;
use serde_json::json;
use std::hint::black_box;
use timing::{Memory, Options, Timing, Work};

const TEXTS: usize = 64;
const LENGTH: usize = 4096;
const VOCAB: usize = 50_000;

/// A byte-level tokenizer as GPT-2's: words of 1 to 14 letters, most after a space, and single bytes.
fn tokenizer() -> (Tokenizer, tokenizers::Tokenizer) {
    let mut draws = Sequence::new(1, Draws::Free, 0);
    let mut vocabulary = serde_json::Map::new();
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let others: Vec<u32> = (0..256).filter(|b| !printable(*b)).collect();
    for byte in 0..256u32 {
        let place = others.iter().position(|b| *b == byte);
        let c = place.map_or(byte, |at| 256 + at as u32);
        vocabulary.insert(char::from_u32(c).unwrap().to_string(), byte.into());
    }
    while vocabulary.len() < VOCAB {
        let mut word = String::new();
        word.extend((draws.below(4) > 0).then_some('Ġ'));
        let letters = 1 + draws.below(5) + draws.below(2) * draws.below(9);
        word.extend((0..letters).map(|_| char::from(b'a' + draws.below(26) as u8)));
        let id = vocabulary.len();
        vocabulary.entry(word).or_insert_with(|| id.into());
    }
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "added_tokens": [{"id": VOCAB, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 50000}"#).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    (Tokenizer::load(folder.path()).unwrap(), theirs)
}

fn print(op: &str, who: &str, timing: Timing, bound_ms: f64) {
    let tokens = (TEXTS * LENGTH) as f64;
    println!(
        "{}",
        json!({
            "op": op, "shape": [TEXTS, LENGTH], "dtype": "i32", "threads": pool::threads(), "who": who,
            "median_ms": timing.median_ms, "cpu_ms": timing.cpu_ms, "bound_ms": bound_ms,
            "tokens_per_second": tokens / timing.median_ms * 1e3,
        })
    );
}

fn main() {
    let options = Options::from_args();
    let (ours, theirs) = tokenizer();
    let table = ours.decode_table().unwrap();
    let mut draws = Sequence::new(2, Draws::Free, 0);
    // Frequent tokens are the short ones of the beginning, as in text.
    let ids: Vec<i32> = (0..TEXTS * LENGTH)
        .map(|_| {
            let size = [VOCAB as u32, 20_000, 5_000][draws.below(3) as usize];
            (256 + draws.below(size - 256)) as i32
        })
        .collect();
    let segments: Vec<usize> = (0..=TEXTS).map(|text| text * LENGTH).collect();
    let unsigned: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
    let lists: Vec<&[u32]> = unsigned.chunks(LENGTH).collect();
    let args = Decode { ids: &ids, segments: &segments, skip_special: true, starts: false };
    let decoded = decode(table, &args).unwrap();
    let want = theirs.decode_batch(&lists, true).unwrap();
    assert!((0..TEXTS).all(|text| decoded.text(text).unwrap() == want[text]), "texts differ");
    let bytes = decoded.bytes.len();
    eprintln!("{:.2} bytes a token", bytes as f64 / ids.len() as f64);

    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let memory = Memory::measure();
        // Ids are read and bytes written; the table stays in the cache.
        let bound = 1e3 * memory.update * (4 * ids.len() + bytes) as f64;
        if options.wants("text_decode_bytes") {
            let time = options.time(|| {
                black_box(decode(table, &args).unwrap());
            });
            print("text_decode_bytes", "gradstone", time, bound);
            let time = options.time(|| {
                black_box(decode(table, &Decode { starts: true, ..args }).unwrap());
            });
            print("text_decode_bytes_starts", "gradstone", time, bound);
        }
        if options.wants("text_decode") {
            let time = options.time(|| {
                let decoded = decode(table, &args).unwrap();
                let texts: Vec<String> =
                    (0..TEXTS).map(|text| decoded.text(text).unwrap().into_owned()).collect();
                black_box(texts);
            });
            print("text_decode", "gradstone", time, bound);
            let one = rayon::ThreadPoolBuilder::new().num_threads(*threads).build().unwrap();
            let time = options.time(|| {
                black_box(one.install(|| theirs.decode_batch(&lists, true).unwrap()));
            });
            print("text_decode", "tokenizers", time, bound);
        }
        if options.wants("text_stream") && *threads == 1 {
            let time = options.time(|| {
                for text in ids.chunks(LENGTH) {
                    let mut stream = Stream::new(table, true);
                    for id in text {
                        black_box(stream.push(*id));
                    }
                    black_box(stream.finish());
                }
            });
            print("text_stream", "gradstone", time, bound);
            let time = options.time(|| {
                for text in unsigned.chunks(LENGTH) {
                    let mut stream = theirs.decode_stream(true);
                    for id in text {
                        black_box(stream.step(*id).unwrap());
                    }
                }
            });
            print("text_stream", "tokenizers", time, bound);
        }
        if options.wants("vq_lookup") {
            // 64 images of 24 x 24 positions, the codebook of LlamaGen's VQ-16.
            let (images, positions, codes, channels) = (64, 576, 16_384, 8);
            let codebook = timing::normal(codes * channels, 1, 1.0);
            let ids: Vec<i32> =
                (0..images * positions).map(|_| draws.below(codes as u32) as i32).collect();
            let mut out = vec![0f32; images * positions * channels];
            let time = options.time(|| {
                vq_lookup(VqLookup {
                    ids: &ids,
                    codebook: &codebook,
                    positions,
                    channels,
                    normalize: true,
                    layout: Layout::ChannelFirst,
                    out: &mut out,
                })
                .unwrap();
            });
            let bytes = ids.len() * 4 + out.len() * 4;
            let bound = 1e3 * memory.update * bytes as f64;
            let shape = [images, positions, channels];
            timing::print("vq_lookup", &shape, "f32", time, bound, &Work::Bytes(bytes));
        }
    }
}
