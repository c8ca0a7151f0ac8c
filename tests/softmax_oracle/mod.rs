//! Log-prob, entropy and gradient of one row of logits in f64, as the formulas say them: the judge of both families.
#![allow(dead_code)]

/// How logits become a distribution.
#[derive(Clone, Debug, Default)]
pub struct Softmax {
    pub temperature: f64,
    pub softcap: Option<f64>,
    pub banned: Vec<i32>,
}

/// Statistics of one row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub logprob: f64,
    pub entropy: f64,
    pub logsumexp: f64,
}

impl Softmax {
    fn tempered(&self, logits: &[f64]) -> Vec<f64> {
        let capped = logits.iter().enumerate().map(|(id, z)| {
            let z = self.softcap.map_or(*z, |cap| cap * (z / cap).tanh());
            if self.banned.contains(&(id as i32)) {
                f64::NEG_INFINITY
            } else {
                z / self.temperature
            }
        });
        capped.collect()
    }

    pub fn row(&self, logits: &[f64], target: usize) -> Row {
        let z = self.tempered(logits);
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            return Row { logprob: max, entropy: 0.0, logsumexp: max };
        }
        // Relative to the largest: a logit of -3e38 has no digits left for a logarithm.
        let log_sum = z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let log_p = |z: f64| z - max - log_sum;
        let entropy = z.iter().map(|z| match log_p(*z).exp() {
            0.0 => 0.0,
            p => -p * log_p(*z),
        });
        let (logprob, entropy) = (log_p(z[target]), entropy.sum());
        Row { logprob, entropy, logsumexp: max + log_sum }
    }

    /// `d (dlogprob · logprob + dentropy · entropy) / d logits`.
    pub fn gradient(&self, logits: &[f64], target: usize, upstream: [f64; 2]) -> Vec<f64> {
        let [dlogprob, dentropy] = upstream;
        let row = self.row(logits, target);
        let z = self.tempered(logits);
        let each = z.iter().zip(logits).enumerate().map(|(id, (z, raw))| {
            if self.banned.contains(&(id as i32)) || row.logsumexp == f64::NEG_INFINITY {
                return 0.0;
            }
            let log_p = z - row.logsumexp;
            let p = log_p.exp();
            let surprise = if p == 0.0 { 0.0 } else { p * (log_p + row.entropy) };
            let hot = if id == target { 1.0 } else { 0.0 };
            let through = self.softcap.map_or(1.0, |cap| 1.0 - (raw / cap).tanh().powi(2));
            through / self.temperature * (dlogprob * (hot - p) - dentropy * surprise)
        });
        each.collect()
    }

    /// The same by central differences.
    pub fn differences(&self, logits: &[f64], target: usize, upstream: [f64; 2]) -> Vec<f64> {
        let mut logits = logits.to_vec();
        let loss = |logits: &[f64]| {
            let row = self.row(logits, target);
            upstream[0] * row.logprob + upstream[1] * row.entropy
        };
        let mut all = Vec::new();
        for id in 0..logits.len() {
            let (at, step) = (logits[id], 1e-5);
            logits[id] = at + step;
            let above = loss(&logits);
            logits[id] = at - step;
            all.push((above - loss(&logits)) / (2.0 * step));
            logits[id] = at;
        }
        all
    }
}

/// Asserts that `got` is within `absolute + relative · |want|`, or the same infinity.
#[track_caller]
pub fn assert_near(what: &str, got: f32, want: f64, absolute: f64, relative: f64) {
    let got = f64::from(got);
    let near = (got - want).abs() <= absolute + relative * want.abs();
    assert!(near || got == want, "{what}: {got:e}, not {want:e}");
}
