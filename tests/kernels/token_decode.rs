//! Ids to bytes against Hugging Face `tokenizers`, whole and as they arrive; image ids to vectors against the formula.
use crate::devices;
use gradstone::device::Device;
use gradstone::device::cpu::pool;
use gradstone::device::gpu::{DeviceBuffer, DeviceSlice, Gpu};
use gradstone::kernels::token_decode::launch::{DeviceTable, measure};
use gradstone::kernels::token_decode::{
    Decode, Decoded, Layout, Stream, Strip, Table, Token, VqLookup, VqQuantize, decode, vq_lookup,
    vq_quantize,
};
use gradstone::rng::{Sequence, Stream as Draws};
use gradstone::text::Tokenizer;
use gradstone::{DType, Tensor, ops};
use gradstone_host::{Order, with_order};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Tokens of every kind: words, spaces, bytes, cut characters, long ones.
const WORDS: [&str; 24] = [
    "a",
    "b",
    " ",
    "▁",
    "▁▁",
    "▁the",
    "##ing",
    "##s",
    ".",
    " .",
    "n't",
    "'s",
    "é",
    "日本",
    "Ġ",
    "Ġa",
    "Ã",
    "©",
    "ð",
    "Ł",
    "ĺ",
    "Ģ",
    "a token that does not fit sixteen bytes",
    "▁a token of even more than twenty bytes",
];

/// A tokenizer with those words, 256 byte tokens, three special tokens and a decoder.
fn tokenizer(decoder: Value) -> (Tokenizer, tokenizers::Tokenizer) {
    let mut vocabulary = serde_json::Map::new();
    for (id, word) in ["<unk>", "<s>", "</s>"].iter().chain(&WORDS).enumerate() {
        vocabulary.insert((*word).to_string(), id.into());
    }
    for byte in 0..256 {
        vocabulary.insert(format!("<0x{byte:02X}>"), vocabulary.len().into());
    }
    // A gap, then one more.
    vocabulary.insert("last".into(), (vocabulary.len() + 5).into());
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, name)| {
            json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 2}"#).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap();
    (Tokenizer::load(folder.path()).unwrap(), theirs)
}

fn replace() -> Value {
    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})
}

fn strip(start: usize) -> Value {
    json!({"type": "Strip", "content": " ", "start": start, "stop": 0})
}

fn sequence(steps: Value) -> Value {
    json!({"type": "Sequence", "decoders": steps})
}

/// Decoders that are tables.
fn decoders() -> Vec<Value> {
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true});
    let (fallback, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    vec![
        Value::Null,
        fuse.clone(),
        byte_level.clone(),
        sequence(json!([byte_level])),
        metaspace("always"),
        metaspace("never"),
        metaspace("first"),
        fallback.clone(),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": false}),
        sequence(json!([replace(), fallback, fuse])),
        sequence(json!([replace(), fallback, fuse, strip(1)])),
        sequence(json!([replace(), fallback, fuse, strip(3)])),
        sequence(json!([replace(), fuse, strip(2)])),
        sequence(json!([strip(1), replace(), fuse])),
        sequence(json!([metaspace("always"), fuse])),
    ]
}

/// The file of a golden tokenizer, and its cases.
fn golden(name: &str) -> Option<(PathBuf, PathBuf)> {
    let folder = std::env::var("GRADSTONE_GOLDEN_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/golden").into());
    let file =
        |end: &str| PathBuf::from(&folder).join(format!("text_decode__tokenizers__{name}{end}"));
    let (tokenizer, cases) = (file(".tokenizer.json"), file(".json"));
    if !tokenizer.exists() {
        eprintln!("SKIPPED: no golden file {}", tokenizer.display());
        return None;
    }
    Some((tokenizer, cases))
}

fn run(table: &Table, ids: &[i32], segments: &[usize], skip_special: bool) -> Decoded {
    decode(table, &Decode { ids, segments, skip_special, starts: true }).unwrap()
}

fn texts(decoded: &Decoded) -> Vec<String> {
    (0..decoded.offsets.len() - 1).map(|t| decoded.text(t).unwrap().into_owned()).collect()
}

fn streamed(table: &Table, ids: &[i32], skip_special: bool) -> String {
    let mut stream = Stream::new(table, skip_special);
    let mut text: String = ids.iter().map(|id| stream.push(*id).to_string()).collect();
    text.push_str(stream.finish());
    text
}

/// Ids of one text: any, with many bytes and special tokens among them, some outside the vocabulary.
fn ids_of(size: i32) -> impl Strategy<Value = Vec<i32>> {
    let id = prop_oneof![
        6 => 0..size,
        2 => 0..4i32,
        // Bytes of é, 日 and an emoji, in and out of order.
        3 => prop::sample::select(vec![0x20, 0xC3, 0xA9, 0xE6, 0x97, 0xA5, 0xF0, 0x9F, 0x98, 0x80]).prop_map(|b| b + 27),
        1 => size..size + 10,
    ];
    prop::collection::vec(id, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_decoder_is_that_of_tokenizers(
        lists in prop::collection::vec(ids_of(289), 0..5), skip in any::<bool>(),
    ) {
        for decoder in decoders() {
            let (ours, theirs) = tokenizer(decoder.clone());
            let table = ours.decode_table().unwrap();
            let ids = lists.concat();
            let mut segments = vec![0];
            lists.iter().for_each(|list| segments.push(segments[segments.len() - 1] + list.len()));
            let decoded = run(table, &ids, &segments, skip);
            let unsigned: Vec<Vec<u32>> =
                lists.iter().map(|list| list.iter().map(|id| *id as u32).collect()).collect();
            let slices: Vec<&[u32]> = unsigned.iter().map(Vec::as_slice).collect();
            let want = theirs.decode_batch(&slices, skip).unwrap();
            prop_assert_eq!(&texts(&decoded), &want, "{}", decoder);
            for (list, want) in lists.iter().zip(&want) {
                prop_assert_eq!(&streamed(table, list, skip), want, "streamed, {}", decoder);
                let alone = run(table, list, &[0, list.len()], skip);
                prop_assert_eq!(&texts(&alone)[0], want);
                if skip {
                    prop_assert_eq!(&ours.decode(list).unwrap(), want);
                }
            }
            // Where tokens begin: in order, and a token's bytes are those it adds.
            prop_assert_eq!(decoded.starts.len(), ids.len() + 1);
            prop_assert!(decoded.starts.is_sorted());
            prop_assert_eq!(decoded.starts[ids.len()], decoded.bytes.len());
            for (segment, offset) in segments.iter().zip(&decoded.offsets) {
                prop_assert_eq!(&decoded.starts[*segment], offset);
            }
            let plain =
                decode(table, &Decode { ids: &ids, segments: &segments, skip_special: skip, starts: false });
            prop_assert_eq!(plain.unwrap().bytes, decoded.bytes);
        }
    }
}

fn download<T: bytemuck::Pod>(from: DeviceSlice<'_>, whole: &DeviceBuffer) -> Vec<T> {
    let mut values = vec![T::zeroed(); from.len()];
    whole.download(0..from.len(), bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

/// What [`decode`] returns, from a device; its count of unknown ids is not known there.
fn run_on(gpu: &Arc<Gpu>, table: &Table, ids: &[i32], segments: &[usize], skip: bool) -> Decoded {
    let table = DeviceTable::upload(gpu, table).unwrap();
    let ids = DeviceBuffer::upload(gpu, DType::I32, bytemuck::cast_slice(ids)).unwrap();
    let measured = measure(&table, ids.whole(), segments, skip).unwrap();
    let bytes = measured.bytes().unwrap();
    let host = |slice: DeviceSlice<'_>| -> Vec<usize> {
        let mut copy = DeviceBuffer::recycled(gpu, DType::I64, slice.len()).unwrap();
        copy.whole_mut().copy_from(slice).unwrap();
        download::<i64>(slice, &copy).into_iter().map(|at| at as usize).collect()
    };
    // A run that is too short holds the first of the bytes, and nothing is written past it.
    let total = bytes.len();
    let mut short = DeviceBuffer::upload(gpu, DType::U8, &vec![7; total + 3]).unwrap();
    let part = total / 2;
    measured.copy(short.whole_mut().slice_mut(1..1 + part).unwrap()).unwrap();
    let short: Vec<u8> = download(short.whole(), &short);
    let bytes: Vec<u8> = download(bytes.whole(), &bytes);
    assert_eq!(short[1..1 + part], bytes[..part]);
    assert!(short[0] == 7 && short[1 + part..].iter().all(|byte| *byte == 7));
    let (offsets, starts) = (host(measured.offsets()), host(measured.starts()));
    Decoded { bytes, offsets, starts, unknown: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_device_decodes_the_same_bytes(
        lists in prop::collection::vec(ids_of(289), 0..6), skip in any::<bool>(), order in 0usize..5,
    ) {
        let device = devices::emulated();
        let gpu = device.gpu().unwrap();
        for decoder in decoders() {
            let (ours, _) = tokenizer(decoder.clone());
            let table = ours.decode_table().unwrap();
            let ids = lists.concat();
            let mut segments = vec![0];
            lists.iter().for_each(|list| segments.push(segments[segments.len() - 1] + list.len()));
            let want = run(table, &ids, &segments, skip);
            let got = with_order(Order::ALL[order], || run_on(gpu, table, &ids, &segments, skip));
            prop_assert_eq!(texts(&got), texts(&want), "{}", decoder);
            prop_assert_eq!(&got.bytes, &want.bytes);
            prop_assert_eq!(&got.offsets, &want.offsets);
            prop_assert_eq!(&got.starts, &want.starts, "{}", decoder);
            // Ids that the table does not have are reported.
            let outside = ids.iter().any(|id| *id as usize >= table.len());
            prop_assert_eq!(gpu.check_status().is_err(), outside);
        }
    }
}

#[test]
fn a_device_decodes_many_tiles() {
    let device = devices::emulated();
    let gpu = device.gpu().unwrap();
    let (ours, _) = tokenizer(sequence(
        json!([replace(), {"type": "ByteFallback"}, {"type": "Fuse"}, strip(1)]),
    ));
    let table = ours.decode_table().unwrap();
    let mut draws = Sequence::new(9, Draws::Free, 0);
    // A part of long tokens only: more bytes than a tile's stage holds.
    let ids: Vec<i32> =
        (0..5000).map(|i| if i / 1100 == 2 { 26 } else { draws.below(283) as i32 }).collect();
    let segments = [0, 10, 10, 1500, 4999, 5000];
    let want = run(table, &ids, &segments, true);
    for order in Order::ALL {
        let got = with_order(order, || run_on(gpu, table, &ids, &segments, true));
        assert_eq!(got.bytes, want.bytes);
        assert_eq!((got.starts, got.offsets), (want.starts.clone(), want.offsets.clone()));
    }
    let there = DeviceTable::upload(gpu, table).unwrap();
    let four = DeviceBuffer::recycled(gpu, DType::I32, 4).unwrap();
    assert!(measure(&there, four.whole(), &[0, 5], true).err().unwrap().is_shape());
    let wide = Table::new([], Some(Strip { character: '日', count: 1 })).unwrap();
    assert!(DeviceTable::upload(gpu, &wide).err().unwrap().is_unsupported());
}

#[test]
fn each_token_begins_where_its_bytes_are() {
    let (ours, _) = tokenizer(sequence(
        json!([replace(), {"type": "ByteFallback"}, {"type": "Fuse"}, strip(1)]),
    ));
    let table = ours.decode_table().unwrap();
    let byte = |b: i32| b + 27;
    // ▁the, é in two bytes with a special token between, b, a broken byte, long.
    let ids = [8, byte(0xC3), 1, byte(0xA9), 4, byte(0xFF), 25];
    let decoded = run(table, &ids, &[0, 7], true);
    let long = "a token that does not fit sixteen bytes";
    assert_eq!(texts(&decoded), [format!("theéb\u{FFFD}{long}")]);
    assert_eq!(decoded.starts, [0, 3, 4, 4, 5, 6, 9, 9 + long.len()]);
}

#[test]
fn golden_texts_whole_and_streamed() {
    for name in ["bytelevel_2k", "bytefallback_850", "metaspace_600"] {
        let Some((tokenizer, cases)) = golden(name) else { continue };
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(&tokenizer, folder.path().join("tokenizer.json")).unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 0}"#).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let table = tokenizer.decode_table().unwrap();
        let cases: Value = serde_json::from_slice(&std::fs::read(cases).unwrap()).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let ids: Vec<i32> = serde_json::from_value(case["ids"].clone()).unwrap();
            for (skip, want) in [(true, "skip_special_true"), (false, "skip_special_false")] {
                let want = case[want].as_str().unwrap();
                assert_eq!(texts(&run(table, &ids, &[0, ids.len()], skip))[0], want, "{name}");
                assert_eq!(streamed(table, &ids, skip), want, "{name}, streamed");
                // Any part of a text is whole characters, and all of them at the end are the text.
                let mut stream = Stream::new(table, skip);
                let mut so_far = String::new();
                for id in &ids {
                    so_far.push_str(stream.push(*id));
                    assert!(want.starts_with(&so_far), "{name}: {so_far:?} of {want:?}");
                }
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let (ours, _) = tokenizer(sequence(
        json!([replace(), {"type": "ByteFallback"}, {"type": "Fuse"}, strip(1)]),
    ));
    let table = ours.decode_table().unwrap();
    let mut draws = Sequence::new(5, Draws::Free, 0);
    let ids: Vec<i32> = (0..300_000).map(|_| draws.below(300) as i32).collect();
    let mut segments = vec![0];
    while segments[segments.len() - 1] < ids.len() {
        segments.push((segments[segments.len() - 1] + draws.below(900) as usize).min(ids.len()));
    }
    pool::set_threads(1).unwrap();
    let want = run(table, &ids, &segments, true);
    assert!(want.unknown > 0);
    for threads in [2, 4] {
        pool::set_threads(threads).unwrap();
        assert_eq!(run(table, &ids, &segments, true), want);
    }
}

#[test]
fn decoders_that_are_no_tables_still_decode() {
    for decoder in [
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "CTC", "pad_token": "<unk>", "word_delimiter_token": "|", "cleanup": true}),
        sequence(json!([{"type": "Fuse"}, replace()])),
        sequence(json!([{"type": "ByteFallback"}, replace()])),
        json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}),
    ] {
        let (ours, theirs) = tokenizer(decoder.clone());
        assert!(ours.decode_table().is_none(), "{decoder}");
        assert!(ours.stream().unwrap_err().is_unsupported());
        assert_eq!(ours.decode(&[3, 5, 3]).unwrap(), theirs.decode(&[3, 5, 3], true).unwrap());
        assert!(ours.decode(&[-1]).unwrap_err().is_index());
    }
}

#[test]
fn bad_tables_and_segments() {
    let token = |bytes: &[u8]| Some(Token { bytes: bytes.to_vec(), ..Token::default() });
    let table = Table::new([token(b"ab"), None, token(b"")], None).unwrap();
    assert_eq!((table.len(), table.is_empty()), (3, false));
    let ids = [0, 1, 2, -5, i32::MIN, 3, 0];
    let decoded = run(&table, &ids, &[0, 7], false);
    assert_eq!((decoded.bytes.as_slice(), decoded.unknown), (&b"abab"[..], 4));
    assert_eq!(decoded.text(1), None);
    for segments in [&[][..], &[0], &[0, 6], &[1, 7], &[0, 5, 3, 7]] {
        let args = Decode { ids: &ids, segments, skip_special: true, starts: false };
        assert!(decode(&table, &args).unwrap_err().is_shape(), "{segments:?}");
    }
    let wrong = Token { bytes: vec![1, 2], fallback: true, ..Token::default() };
    assert!(Table::new([Some(wrong)], None).unwrap_err().is_invalid());
    let strip = Some(Strip { character: '日', count: 2 });
    let table = Table::new([token("日日".as_bytes()), token("日".as_bytes())], strip).unwrap();
    assert_eq!(run(&table, &[1, 0], &[0, 2], false).bytes, "日".as_bytes());
}

/// `x / max(|x|, 1e-12)` in f64.
fn unit(x: &[f32]) -> Vec<f64> {
    let length = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    x.iter().map(|x| f64::from(*x) / length).collect()
}

proptest! {
    #[test]
    fn vectors_of_images(
        images in 0usize..4, positions in 1usize..40, codes in 1usize..70, channels in 1usize..20,
        normalize in any::<bool>(), last in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut draws = Sequence::new(seed, Draws::Free, 0);
        let mut codebook: Vec<f32> = (0..codes * channels).map(|_| draws.next_normal()).collect();
        codebook[..channels].fill(0.0);
        let ids: Vec<i32> = (0..images * positions).map(|_| draws.below(codes as u32) as i32).collect();
        let layout = if last { Layout::ChannelLast } else { Layout::ChannelFirst };
        let mut out = vec![f32::NAN; images * positions * channels];
        vq_lookup(VqLookup { ids: &ids, codebook: &codebook, positions, channels, normalize, layout, out: &mut out }).unwrap();
        let place = |image: usize, position: usize, channel: usize| match layout {
            Layout::ChannelFirst => (image * channels + channel) * positions + position,
            Layout::ChannelLast => (image * positions + position) * channels + channel,
        };
        let code = |id: usize| &codebook[id * channels..(id + 1) * channels];
        for image in 0..images {
            for position in 0..positions {
                let id = ids[image * positions + position] as usize;
                let want: Vec<f64> =
                    if normalize { unit(code(id)) } else { code(id).iter().map(|x| f64::from(*x)).collect() };
                for (channel, want) in want.iter().enumerate() {
                    let got = f64::from(out[place(image, position, channel)]);
                    prop_assert!((got - want).abs() <= 3e-7 * (1.0 + want.abs()), "{got} {want}");
                }
            }
        }
        // And back: vectors near their codes find them again, or one that is no farther.
        let z: Vec<f32> = out.iter().map(|x| x + 0.05 * draws.next_normal()).collect();
        let mut found = vec![-1; ids.len()];
        vq_quantize(VqQuantize { z: &z, codebook: &codebook, positions, channels, normalize, layout, ids: &mut found }).unwrap();
        for image in 0..images {
            for position in 0..positions {
                let vector: Vec<f32> = (0..channels).map(|c| z[place(image, position, c)]).collect();
                let form = |x: &[f32]| if normalize { unit(x) } else { x.iter().map(|x| f64::from(*x)).collect() };
                let distance = |id: usize| -> f64 {
                    form(&vector).iter().zip(form(code(id))).map(|(a, b)| (a - b).powi(2)).sum()
                };
                let nearest = (0..codes).map(distance).fold(f64::INFINITY, f64::min);
                let id = found[image * positions + position] as usize;
                prop_assert!(distance(id) <= nearest + 1e-5 * (1.0 + nearest));
            }
        }
    }
}

#[test]
fn vectors_have_the_same_bits_on_a_device() {
    let device = devices::emulated();
    let mut draws = Sequence::new(3, Draws::Free, 0);
    for (images, positions, codes, channels) in
        [(2, 37, 70, 8), (1, 1, 1, 1), (0, 5, 3, 2), (3, 64, 33, 5)]
    {
        let mut normal =
            |len: usize| -> Vec<f32> { (0..len).map(|_| draws.next_normal()).collect() };
        let codebook = Tensor::from_f32(normal(codes * channels), &[codes, channels]).unwrap();
        let z = normal(images * positions * channels);
        for (normalize, layout) in [
            (true, Layout::ChannelFirst),
            (false, Layout::ChannelFirst),
            (true, Layout::ChannelLast),
        ] {
            let shape = match layout {
                Layout::ChannelFirst => [images, channels, positions],
                Layout::ChannelLast => [images, positions, channels],
            };
            let z = Tensor::from_f32(z.clone(), &shape).unwrap();
            let ids = ops::vq_quantize(&z, &codebook, normalize, layout).unwrap();
            let vectors = ops::vq_lookup(&ids, &codebook, normalize, layout).unwrap();
            for order in Order::ALL {
                let there = |tensor: &Tensor| tensor.to_device(&device).unwrap();
                let (found, gathered) = with_order(order, || {
                    let found =
                        ops::vq_quantize(&there(&z), &there(&codebook), normalize, layout).unwrap();
                    let gathered =
                        ops::vq_lookup(&there(&ids), &there(&codebook), normalize, layout);
                    (
                        found.to_device(&Device::Cpu).unwrap(),
                        gathered.unwrap().to_device(&Device::Cpu).unwrap(),
                    )
                });
                assert_eq!(found.i32s().unwrap(), ids.i32s().unwrap());
                let bits =
                    |x: &Tensor| x.f32s().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&gathered), bits(&vectors));
            }
        }
    }
    let codebook = Tensor::from_f32(vec![1.0; 6], &[3, 2]).unwrap().to_device(&device).unwrap();
    let ids = Tensor::from_i32(vec![0, 3, -1, 2], &[1, 4]).unwrap().to_device(&device).unwrap();
    let out = ops::vq_lookup(&ids, &codebook, false, Layout::ChannelLast).unwrap();
    let out = out.to_device(&Device::Cpu).unwrap();
    assert_eq!(out.f32s().unwrap(), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    assert!(device.gpu().unwrap().check_status().unwrap_err().is_index());
    let flat = Tensor::from_i32(vec![0; 4], &[4]).unwrap();
    assert!(ops::vq_lookup(&flat, &codebook, true, Layout::ChannelLast).unwrap_err().is_shape());
}

#[test]
fn vq_bad_input() {
    let lookup = |ids: &[i32], codebook: &[f32], positions, out: &mut [f32]| {
        let (channels, layout) = (2, Layout::ChannelLast);
        vq_lookup(VqLookup { ids, codebook, positions, channels, normalize: true, layout, out })
    };
    let codebook = [1.0, 2.0, 3.0, 4.0];
    let mut out = [0.0; 4];
    lookup(&[0, 1], &codebook, 2, &mut out).unwrap();
    for id in [2, -1] {
        let error = lookup(&[0, id], &codebook, 2, &mut out).unwrap_err();
        assert!(error.is_index() && error.to_string().contains("2 codes"), "{error}");
    }
    assert!(lookup(&[0, 1], &codebook, 2, &mut out[1..]).unwrap_err().is_shape());
    assert!(lookup(&[0, 1], &codebook[1..], 2, &mut out).unwrap_err().is_shape());
    assert!(lookup(&[0, 1], &codebook, 3, &mut out).unwrap_err().is_shape());
    assert!(lookup(&[0, 1], &codebook, 0, &mut out).unwrap_err().is_shape());
    let (z, mut ids) = ([0.0; 4], [0; 2]);
    let quantize = VqQuantize {
        z: &z,
        codebook: &[],
        positions: 2,
        channels: 2,
        normalize: false,
        layout: Layout::ChannelLast,
        ids: &mut ids,
    };
    assert!(vq_quantize(quantize).unwrap_err().is_shape());
}
