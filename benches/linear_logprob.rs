//! Log-prob of hidden states `[1024, 1024]` through a head `[32000, 1024]`: forward, and with the gradients of both.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use gradstone::device::cpu::pool;
use gradstone::dtype::{Float, FloatSlice};
use gradstone::kernels::linear_logprob::{self, Gradients, Head};
use gradstone::kernels::logprob::{Outputs, Softmax, Upstream};
use half::bf16;
use timing::{Options, Work};

const ROWS: usize = 1024;
const WIDTH: usize = 1024;
const VOCAB: usize = 32_000;

fn bench(options: &Options, hidden: FloatSlice<'_>, weight: FloatSlice<'_>, flop: f64) {
    let dtype = hidden.dtype().name();
    let shape = [ROWS, WIDTH, VOCAB];
    let targets: Vec<i32> = (0..ROWS).map(|i| ((i * 7919) % VOCAB) as i32).collect();
    let dlogprob = timing::normal(ROWS, 5, 1.0);
    let (mut logprob, mut logsumexp) = (vec![0f32; ROWS], vec![0f32; ROWS]);
    let mut dhidden = vec![0f32; ROWS * WIDTH];
    let mut dweight = vec![0f32; VOCAB * WIDTH];
    let head = Head {
        hidden,
        weight,
        bias: None,
        targets: &targets,
        rows: ROWS,
        width: WIDTH,
        vocab: VOCAB,
        softmax: Softmax::default(),
        workspace: 0,
    };
    let forward = 2.0 * (ROWS * WIDTH * VOCAB) as f64;
    for (op, flops) in [("linear_logprob_fwd", forward), ("linear_logprob_fwd_bwd", 3.0 * forward)]
    {
        if !options.wants(op) {
            continue;
        }
        let time = options.time(|| {
            let out = Outputs {
                logprob: &mut logprob,
                entropy: None,
                logsumexp: &mut logsumexp,
                argmax: None,
            };
            if flops == forward {
                return linear_logprob::forward(&head, out).unwrap();
            }
            dweight.fill(0.0);
            let into =
                Gradients { dhidden: Some(&mut dhidden), dweight: Some(&mut dweight), dbias: None };
            let upstream = Upstream::Known { dlogprob: Some(&dlogprob), dentropy: None };
            linear_logprob::forward_backward(&head, upstream, out, into).unwrap();
        });
        timing::print(op, &shape, dtype, time, flop * flops * 1e3, &Work::Flops(flops));
    }
    let kind = weight.dtype();
    let workspace = linear_logprob::workspace_bytes(ROWS, WIDTH, VOCAB, kind, 0);
    eprintln!(
        "linear_logprob {kind}: {:.1} MiB of workspace",
        workspace as f64 / f64::from(1 << 20)
    );
}

fn main() {
    let options = Options::from_args();
    let hidden = timing::normal(ROWS * WIDTH, 1, 1.0);
    let weight = timing::normal(VOCAB * WIDTH, 2, 0.05);
    let narrow = |x: &[f32]| x.iter().map(|x| Float::from_f32(*x)).collect::<Vec<bf16>>();
    let (hidden_bf16, weight_bf16) = (narrow(&hidden), narrow(&weight));
    for threads in &options.threads {
        pool::set_threads(*threads).unwrap();
        let flop = timing::gemm_flop();
        eprintln!("{threads} threads: {:.0} GFLOP/s in a 1536³ product", 1e-9 / flop);
        bench(&options, FloatSlice::F32(&hidden), FloatSlice::F32(&weight), flop);
        bench(&options, FloatSlice::Bf16(&hidden_bf16), FloatSlice::Bf16(&weight_bf16), flop);
    }
}
