//! What the autograd promises: accumulation, frozen inputs, several outputs, depth, checkpoints, one use of a graph.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use gradstone::tensor::autograd::{self, Backward, Grads};
use gradstone::tensor::{Gradients, ParamId};
use gradstone::{DType, Result, Tensor, ops};

fn vector(values: &[f32]) -> Tensor {
    Tensor::from_f32(values.to_vec(), &[values.len()]).unwrap()
}

fn of(gradients: &Gradients, id: ParamId) -> Vec<f32> {
    gradients.get(id).unwrap().f32s().unwrap().to_vec()
}

#[test]
fn a_second_call_adds() {
    let id = ParamId::fresh();
    let mut gradients = Gradients::new();
    for _ in 0..3 {
        let x = vector(&[1.0, 2.0]).tracked(id);
        autograd::backward(&ops::sum(&ops::scale(&x, 2.0).unwrap()).unwrap(), &mut gradients)
            .unwrap();
    }
    assert_eq!(of(&gradients, id), [6.0, 6.0]);
}

#[test]
fn a_diamond_adds_its_branches() {
    let id = ParamId::fresh();
    let x = vector(&[3.0]).tracked(id);
    let y = ops::mul(&x, &x).unwrap();
    let z = ops::add(&ops::mul(&y, &x).unwrap(), &y).unwrap();
    let mut gradients = Gradients::new();
    autograd::backward(&z, &mut gradients).unwrap();
    assert_eq!(of(&gradients, id), [3.0 * 9.0 + 6.0]);
}

#[test]
fn a_graph_is_used_once() {
    let x = vector(&[3.0]).tracked(ParamId::fresh());
    let y = ops::mul(&x, &x).unwrap();
    autograd::backward(&y, &mut Gradients::new()).unwrap();
    let error = autograd::backward(&y, &mut Gradients::new()).unwrap_err();
    assert!(error.is_state(), "{error}");
    assert!(autograd::backward(&vector(&[1.0]), &mut Gradients::new()).unwrap_err().is_state());
    let wide = vector(&[1.0, 2.0]).tracked(ParamId::fresh());
    assert!(autograd::backward(&wide, &mut Gradients::new()).unwrap_err().is_shape());
}

#[test]
fn a_million_nodes_neither_walk_nor_drop_recursively() {
    let x = vector(&[1.0]).tracked(ParamId::fresh());
    let chain = |n: usize| (0..n).fold(x.clone(), |x, _| ops::scale(&x, 1.0).unwrap());
    drop(chain(1_000_000));
    let mut gradients = Gradients::new();
    autograd::backward(&chain(300_000), &mut gradients).unwrap();
    assert_eq!(gradients.iter().count(), 1);
}

#[test]
fn no_grad_keeps_nothing() {
    let x = vector(&[1.0]).tracked(ParamId::fresh());
    let y = autograd::no_grad(|| ops::scale(&x, 2.0).unwrap());
    assert!(!y.is_tracked());
    assert!(ops::scale(&x, 2.0).unwrap().is_tracked());
    assert!(!ops::scale(&x.detach(), 2.0).unwrap().is_tracked());
}

/// Splits a vector into its halves: two outputs.
fn halves(x: &Tensor) -> Vec<Tensor> {
    struct Halves(usize);
    impl Backward for Halves {
        fn name(&self) -> &'static str {
            "halves"
        }
        fn backward(self: Box<Self>, grads: Grads, _wanted: &[bool]) -> Result<Grads> {
            let mut out = vec![0.0; 2 * self.0];
            for (i, grad) in grads.iter().enumerate() {
                if let Some(grad) = grad {
                    out[i * self.0..(i + 1) * self.0].copy_from_slice(grad.f32s()?);
                }
            }
            Ok(vec![Some(Tensor::from_f32(out, &[2 * self.0])?)])
        }
    }
    let n = x.len() / 2;
    let outputs = vec![x.rows(0..n).unwrap(), x.rows(n..2 * n).unwrap()];
    autograd::record(&[x], outputs, || Halves(n))
}

#[test]
fn an_output_that_does_not_reach_the_loss_sends_none() {
    let id = ParamId::fresh();
    let parts = halves(&vector(&[1.0, 2.0, 3.0, 4.0]).tracked(id));
    let mut gradients = Gradients::new();
    autograd::backward(&ops::sum(&parts[1]).unwrap(), &mut gradients).unwrap();
    assert_eq!(of(&gradients, id), [0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn a_checkpoint_gives_the_same_bits() {
    let (a, b) = (ParamId::fresh(), ParamId::fresh());
    let x =
        Tensor::from_f32((0..12).map(|i| (i as f32).sin()).collect(), &[3, 4]).unwrap().tracked(a);
    let w =
        Tensor::from_f32((0..20).map(|i| (i as f32).cos()).collect(), &[5, 4]).unwrap().tracked(b);
    let f = |t: &[Tensor]| Ok(vec![ops::tanh(&ops::linear(&t[0], &t[1], None)?)?]);
    let run = |checkpointed: bool| {
        let y = if checkpointed {
            autograd::checkpoint(&[&x, &w], f).unwrap()
        } else {
            f(&[x.clone(), w.clone()]).unwrap()
        };
        let mut gradients = Gradients::new();
        autograd::backward(&ops::sum(&ops::mul(&y[0], &y[0]).unwrap()).unwrap(), &mut gradients)
            .unwrap();
        (of(&gradients, a), of(&gradients, b))
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_checkpoint_that_captures_a_tracked_tensor_is_an_error() {
    let x = vector(&[1.0]).tracked(ParamId::fresh());
    let leaf = vector(&[2.0]).tracked(ParamId::fresh());
    let computed = ops::scale(&leaf, 3.0).unwrap();
    for captured in [leaf, computed] {
        let y =
            autograd::checkpoint(&[&x], move |t| Ok(vec![ops::mul(&t[0], &captured)?])).unwrap();
        let error = autograd::backward(&y[0], &mut Gradients::new()).unwrap_err();
        assert!(error.is_state(), "{error}");
    }
}

#[test]
fn cast_rounds_and_passes_the_gradient() {
    let id = ParamId::fresh();
    let x = vector(&[1.0, 1.003_906_3, -2.5]).tracked(id);
    let y = ops::cast(&x, DType::Bf16).unwrap();
    assert_eq!(&*y.to_f32s().unwrap(), [1.0, 1.0, -2.5]);
    let mut gradients = Gradients::new();
    autograd::backward(&ops::sum(&ops::scale(&y, 0.3).unwrap()).unwrap(), &mut gradients).unwrap();
    assert_eq!(of(&gradients, id), [0.3, 0.3, 0.3]);
    assert!(ops::cast(&x, DType::I32).unwrap_err().is_dtype());
    assert_eq!(ops::cast(&x, DType::F32).unwrap().bytes().unwrap(), x.bytes().unwrap());
}
