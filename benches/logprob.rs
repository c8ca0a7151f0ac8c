//! Log-prob and entropy of logits `[512, 151936]`: forward, and forward with backward in place.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::device::cpu::pool;
use gradstone::dtype::{Float, FloatSlice, FloatSliceMut};
use gradstone::kernels::logprob::{
    self, Backward, Forward, ForwardBackward, Outputs, Softmax, Upstream,
};
use timing::{Memory, Options, Work};

const ROWS: usize = 512;
const VOCAB: usize = 151_936;

struct Stats {
    logprob: Vec<f32>,
    entropy: Vec<f32>,
    logsumexp: Vec<f32>,
}

impl Stats {
    fn outputs(&mut self) -> Outputs<'_> {
        Outputs {
            logprob: &mut self.logprob,
            entropy: Some(&mut self.entropy),
            logsumexp: &mut self.logsumexp,
            argmax: None,
        }
    }
}

fn bench<T: Float>(
    options: &Options,
    memory: &Memory,
    logits: &mut [T],
    read: for<'a> fn(&'a [T]) -> FloatSlice<'a>,
    write: for<'a> fn(&'a mut [T]) -> FloatSliceMut<'a>,
) {
    let dtype = T::DTYPE.name();
    let shape = [ROWS, VOCAB];
    let bytes = size_of_val(logits);
    let targets: Vec<i32> = (0..ROWS).map(|i| ((i * 7919) % VOCAB) as i32).collect();
    let zeros = || vec![0f32; ROWS];
    let mut stats = Stats { logprob: zeros(), entropy: zeros(), logsumexp: zeros() };
    let (dlogprob, dentropy) = (timing::normal(ROWS, 5, 1.0), timing::normal(ROWS, 6, 1.0));
    let softmax = Softmax::default();
    let targets = &targets[..];
    if options.wants("logprob_entropy_fwd") {
        let time = options.time(|| {
            let args = Forward { logits: read(logits), targets, rows: ROWS, vocab: VOCAB, softmax };
            logprob::forward(&args, stats.outputs()).unwrap();
        });
        let bound = memory.read * bytes as f64 * 1e3;
        timing::print("logprob_entropy_fwd", &shape, dtype, time, bound, &Work::Bytes(bytes));
    }
    // The runs after the first take gradients for logits, which cost the same to read; no value in them is special.
    let upstream = Upstream::Known { dlogprob: Some(&dlogprob), dentropy: Some(&dentropy) };
    let bound = memory.update * 2.0 * bytes as f64 * 1e3;
    if options.wants("logprob_entropy_fwd_bwd") {
        let time = options.time(|| {
            let logits = write(logits);
            let args =
                ForwardBackward { logits, targets, rows: ROWS, vocab: VOCAB, softmax, upstream };
            logprob::forward_backward(args, stats.outputs()).unwrap();
        });
        let work = Work::Bytes(2 * bytes);
        timing::print("logprob_entropy_fwd_bwd", &shape, dtype, time, bound, &work);
    }
    if options.wants("logprob_entropy_bwd") {
        let time = options.time(|| {
            let args = Backward {
                logits: write(logits),
                targets,
                rows: ROWS,
                vocab: VOCAB,
                softmax,
                logsumexp: &stats.logsumexp,
                entropy: Some(&stats.entropy),
                dlogprob: Some(&dlogprob),
                dentropy: Some(&dentropy),
            };
            logprob::backward(args).unwrap();
        });
        let work = Work::Bytes(2 * bytes);
        timing::print("logprob_entropy_bwd", &shape, dtype, time, bound, &work);
    }
}

fn main() {
    let options = Options::from_args();
    let fresh = timing::normal(ROWS * VOCAB, 1, 2.0);
    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let memory = Memory::measure();
        let mut logits = fresh.clone();
        bench(&options, &memory, &mut logits, |x| FloatSlice::F32(x), |x| FloatSliceMut::F32(x));
        let mut logits: Vec<half::bf16> = fresh.iter().map(|x| Float::from_f32(*x)).collect();
        bench(&options, &memory, &mut logits, |x| FloatSlice::Bf16(x), |x| FloatSliceMut::Bf16(x));
    }
}
