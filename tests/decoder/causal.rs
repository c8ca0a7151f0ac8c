//! Every causal model behind one interface: however a token is read, its bits are the same.

use gradstone::device::Device;
use gradstone::models::{Causal, Decoder, DecoderConfig, Gpt, GptConfig};
use gradstone::tensor::autograd::{backward, no_grad};
use gradstone::tensor::{Gradients, Tensor};
use gradstone::{DType, ops};

fn gpt() -> Gpt {
    let config = GptConfig { vocab: 13, width: 16, layers: 2, heads: 2, context: 12, ngram: 3 };
    Gpt::random(config, 3).unwrap()
}

fn decoder() -> Decoder {
    let config = DecoderConfig::small("qwen2", 13, 16, 2, 2, 12).unwrap();
    Decoder::random(config, DType::Bf16, 3).unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.bytes().unwrap().to_vec()
}

/// Two sequences, grown token by token from a prompt, with prepared weights and without: every way of reading a
/// token gives its hidden state and its logits the same bits.
fn agrees(model: &impl Causal) {
    let sequences: [&[i32]; 2] = [&[1, 2, 3, 4, 5, 6, 7], &[8, 9, 10, 11, 12, 0, 1]];
    let rows: Vec<usize> = (0..14).collect();
    let whole = model.hidden_at(&sequences, &rows).unwrap();
    let logits = model.raw_logits(None, &whole).unwrap();
    assert_eq!(logits.shape(), [14, model.vocab()]);
    let ids: Vec<i32> = sequences.concat();
    let softmax =
        ops::SoftmaxOptions { softcap: model.softcap(), ..ops::SoftmaxOptions::default() };
    let fused = ops::linear_logprob(&whole, &model.head(), None, &ids, &softmax).unwrap().0;
    let apart = ops::logprob(&logits, &ids, &softmax).unwrap().0;
    assert_eq!(bytes(&fused), bytes(&apart));
    let prepared = model.prepared().unwrap();
    assert!(prepared.bytes() > 0);
    for prepared in [None, Some(&prepared)] {
        let mut cache = model.cache(2, 7).unwrap();
        let prompts = sequences.map(|tokens| (&tokens[..3], 0));
        model.continued(prepared, &prompts, &mut cache).unwrap();
        for length in 4..=7 {
            let grown = sequences.map(|tokens| (&tokens[..length], length - 1));
            let hidden = model.continued(prepared, &grown, &mut cache).unwrap();
            let at = [length - 1, 7 + length - 1];
            let want = no_grad(|| ops::gather(&whole, &at)).unwrap();
            assert_eq!(bytes(&hidden), bytes(&want), "{length}");
            let got = model.raw_logits(prepared, &hidden).unwrap();
            assert_eq!(bytes(&got), bytes(&ops::gather(&logits, &at).unwrap()), "{length}");
        }
        let grown = sequences.map(|tokens| (tokens, 6));
        assert!(model.continued(prepared, &grown, &mut cache).unwrap_err().is_invalid());
    }
    let some = model.hidden_at(&sequences, &[9, 2]).unwrap();
    assert_eq!(bytes(&some), bytes(&ops::gather(&whole, &[9, 2]).unwrap()));
    let long = vec![1; model.context() + 1];
    assert!(model.hidden_at(&[&long], &[0]).unwrap_err().is_index());
    assert!(model.hidden_at(&[&[model.vocab() as i32]], &[0]).unwrap_err().is_index());
}

/// Gradients of a loss, and the loss, with and without recomputation.
fn recomputes(mut model: impl Causal) {
    let sequences: [&[i32]; 2] = [&[1, 2, 3, 4, 5], &[8, 9, 10, 11]];
    let mut found = Vec::new();
    for checkpointed in [false, true] {
        model.set_checkpointed(checkpointed);
        let hidden = model.hidden_at(&sequences, &[1, 2, 7]).unwrap();
        let softmax = ops::SoftmaxOptions::default();
        let targets = [3, 4, 11];
        let logprob = ops::linear_logprob(&hidden, &model.head(), None, &targets, &softmax);
        let loss = ops::sum(&logprob.unwrap().0).unwrap();
        let mut gradients = Gradients::new();
        backward(&loss, &mut gradients).unwrap();
        let of = |p: &gradstone::nn::Parameter| bytes(gradients.get(p.id()).unwrap());
        let all: Vec<_> = model.parameters().iter().map(of).collect();
        assert!(all.iter().all(|gradient| gradient.iter().any(|byte| *byte != 0)));
        found.push((bytes(&loss), all));
    }
    assert_eq!(found[0], found[1]);
}

#[test]
fn recomputing_changes_no_bit() {
    recomputes(gpt());
    recomputes(decoder());
}

/// A copy and what comes back from files are the model, and nothing of a copy is frozen.
fn returns<M: Causal>(mut model: M) {
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    let loaded = M::load_on(folder.path(), None, &Device::Cpu).unwrap();
    model.parameters_mut().freeze(true, |_| true);
    let copy = model.copy().unwrap();
    assert!(!copy.parameters().iter().any(|parameter| parameter.is_frozen()));
    for other in [&loaded, &copy] {
        assert_eq!(model.parameters().len(), other.parameters().len());
        for (a, b) in model.parameters().iter().zip(other.parameters().iter()) {
            assert_eq!((a.name(), bytes(a.value())), (b.name(), bytes(b.value())));
            assert_ne!(a.id(), b.id());
        }
    }
}

#[test]
fn every_way_of_reading_a_token_gives_the_same_bits() {
    agrees(&gpt());
    agrees(&decoder());
}

#[test]
fn copies_and_files_hold_the_model() {
    returns(gpt());
    returns(decoder());
}

#[test]
fn a_model_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Causal::save(&gpt(), folder.path()).unwrap();
    let error = Decoder::load_on(folder.path(), None, &Device::Cpu).err().unwrap();
    assert!(error.is_unsupported() && error.to_string().contains("gradstone_gpt"), "{error}");
    decoder().save(folder.path()).unwrap();
    let error = Gpt::load_on(folder.path(), None, &Device::Cpu).err().unwrap();
    assert!(error.is_unsupported() && error.to_string().contains("model_type"), "{error}");
}
