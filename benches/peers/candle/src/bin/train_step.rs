//! A training step of the Llama of `benches/train_step.rs`, 64 sequences of 64 tokens, with candle: forward, cross entropy,
//! backward, AdamW. One JSON line for each number of threads, which candle takes when it starts.
//!
//!     cargo run --release --bin train_step -- --threads 1,2 --seconds 2

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy, ops, rotary_emb::rope_slow};
use std::process::Command;
use std::time::Instant;

const VOCAB: usize = 256;
const WIDTH: usize = 128;
const LAYERS: usize = 4;
const HEADS: usize = 4;
const HEAD: usize = WIDTH / HEADS;
const MLP: usize = 352;
const LENGTH: usize = 64;
const SEQUENCES: usize = 64;

struct Block {
    input_norm: Var,
    mlp_norm: Var,
    /// q, k, v, o, gate, up, down, each `[out, in]`.
    linears: Vec<Var>,
}

struct Llama {
    embedding: Var,
    blocks: Vec<Block>,
    norm: Var,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

fn normal(rows: usize, columns: usize) -> Result<Var> {
    Var::randn(0f32, 0.02, (rows, columns), &Device::Cpu)
}

impl Llama {
    fn new() -> Result<Llama> {
        let shapes =
            [(WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (MLP, WIDTH), (MLP, WIDTH), (WIDTH, MLP)];
        let ones = || Var::ones(WIDTH, DType::F32, &Device::Cpu);
        let block = || {
            let linears = shapes.iter().map(|(out, input)| normal(*out, *input)).collect::<Result<_>>()?;
            Ok(Block { input_norm: ones()?, mlp_norm: ones()?, linears })
        };
        let turned: Vec<f32> = (0..LENGTH * HEAD / 2)
            .map(|i| (i / (HEAD / 2)) as f32 * 10000f32.powf(-((i % (HEAD / 2)) as f32) * 2.0 / HEAD as f32))
            .collect();
        let turned = Tensor::from_vec(turned, (LENGTH, HEAD / 2), &Device::Cpu)?;
        let unseen = (0..LENGTH * LENGTH).map(|i| if i % LENGTH > i / LENGTH { f32::NEG_INFINITY } else { 0.0 });
        Ok(Llama {
            embedding: normal(VOCAB, WIDTH)?,
            blocks: (0..LAYERS).map(|_| block()).collect::<Result<_>>()?,
            norm: ones()?,
            cos: turned.cos()?,
            sin: turned.sin()?,
            mask: Tensor::from_iter(unseen, &Device::Cpu)?.reshape((1, 1, LENGTH, LENGTH))?,
        })
    }

    fn variables(&self) -> Vec<Var> {
        let mut all = vec![self.embedding.clone(), self.norm.clone()];
        for block in &self.blocks {
            all.extend([block.input_norm.clone(), block.mlp_norm.clone()]);
            all.extend(block.linears.iter().cloned());
        }
        all
    }

    fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let mut x = self.embedding.embedding(ids)?;
        for block in &self.blocks {
            let linear = |x: &Tensor, i: usize| x.matmul(&block.linears[i].t()?);
            let heads = |x: Tensor| x.reshape((SEQUENCES, LENGTH, HEADS, HEAD))?.transpose(1, 2)?.contiguous();
            let h = ops::rms_norm_slow(&x, &block.input_norm, 1e-6)?;
            let q = rope_slow(&heads(linear(&h, 0)?)?, &self.cos, &self.sin)?;
            let k = rope_slow(&heads(linear(&h, 1)?)?, &self.cos, &self.sin)?;
            let v = heads(linear(&h, 2)?)?;
            let scores = (q.matmul(&k.t()?)? * (HEAD as f64).powf(-0.5))?.broadcast_add(&self.mask)?;
            let attended = ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
            let attended = attended.transpose(1, 2)?.reshape((SEQUENCES * LENGTH, WIDTH))?;
            x = (x + linear(&attended, 3)?)?;
            let h = ops::rms_norm_slow(&x, &block.mlp_norm, 1e-6)?;
            let gated = (linear(&h, 4)?.silu()? * linear(&h, 5)?)?;
            x = (x + linear(&gated, 6)?)?;
        }
        ops::rms_norm_slow(&x, &self.norm, 1e-6)?.matmul(&self.embedding.t()?)
    }
}

/// CPU time of this process in ms, to the clock tick of 10 ms.
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() * 10.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(threads: &str, seconds: f64) -> Result<()> {
    let model = Llama::new()?;
    let count: usize = model.variables().iter().map(|variable| variable.elem_count()).sum();
    assert_eq!(count, 836_736);
    let text: Vec<u32> = (0..SEQUENCES * (LENGTH + 1)).map(|i| (i * i % 251) as u32).collect();
    let pick = |from: usize| text.chunks(LENGTH + 1).flat_map(move |row| row[from..from + LENGTH].to_vec());
    let ids = Tensor::from_iter(pick(0), &Device::Cpu)?;
    let targets = Tensor::from_iter(pick(1), &Device::Cpu)?;
    let settings = ParamsAdamW { lr: 1e-3, weight_decay: 0.0, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(model.variables(), settings)?;
    let mut step = || optimizer.backward_step(&cross_entropy(&model.logits(&ids)?, &targets)?);
    step()?;
    let (mut wall, cpu, began) = (Vec::new(), cpu_ms(), Instant::now());
    while wall.len() < 3 || began.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        step()?;
        wall.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let cpu = (cpu_ms() - cpu) / wall.len() as f64;
    println!(
        r#"{{"op":"train_step","shape":[{SEQUENCES},{LENGTH},{WIDTH},{LAYERS}],"dtype":"f32","threads":{threads},"who":"candle","median_ms":{},"cpu_ms":{cpu}}}"#,
        median(wall)
    );
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str, otherwise: &str| {
        let at = words.iter().position(|word| word == name);
        at.and_then(|at| words.get(at + 1)).cloned().unwrap_or_else(|| otherwise.to_owned())
    };
    let seconds = option("--seconds", "2");
    if words.iter().any(|word| word == "--here") {
        return measure(&option("--threads", "1"), seconds.parse().unwrap_or(2.0));
    }
    for threads in option("--threads", "1,2").split(',') {
        let program = std::env::current_exe()?;
        let rest = ["--here", "--threads", threads, "--seconds", &seconds];
        let status = Command::new(program).args(rest).env("RAYON_NUM_THREADS", threads).status()?;
        assert!(status.success(), "{threads} threads: {status}");
    }
    Ok(())
}
