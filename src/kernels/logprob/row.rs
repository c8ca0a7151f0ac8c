//! The arithmetic of one row: its pieces, their merge, its gradient.
//!
//! A row is cut into pieces of [`PIECE`] logits, however many rows or threads there are. Each piece has sums relative
//! to its own largest logit; [`merge`] adds them in order. All powers are of two: `y = (z - max) · log2(e) / τ`.

pub(super) mod distribution;

use crate::device::cpu::math;
use crate::device::cpu::simd::simd_fn;
use crate::dtype::{DType, Float};

/// Logits of a piece: its f32 copy and the next one's fit in the first-level cache together.
pub(super) const PIECE: usize = 2048;

/// Lanes of one accumulator; part of the result's bits.
const LANES: usize = 16;

/// Accumulators' worth of logits that are read between the same number that are summed.
const BLOCK: usize = 8;

/// Sums over one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The largest logit (capped, not tempered); -inf when there is none. NaN is passed over.
    max: f32,
    /// `Σ 2^y`; NaN when a logit is.
    sum: f32,
    /// `Σ 2^y · y`.
    weighted: f32,
}

impl Piece {
    pub(super) const EMPTY: Piece = Piece { max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 };
}

/// Two pieces as f32: the one being summed and the one being read.
pub(super) struct Scratch([Vec<f32>; 2]);

impl Scratch {
    pub(super) fn new(vocab: usize) -> Scratch {
        let len = vocab.min(PIECE).next_multiple_of(LANES);
        Scratch([vec![0.0; len], vec![0.0; len]])
    }
}

/// How a logit is read: what every row of a call has in common, and its temperature.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) softcap: Option<f32>,
    /// Sorted ids to be read as -inf.
    pub(super) banned: &'a [usize],
    pub(super) inverse_temperature: f64,
}

impl Reading<'_> {
    fn scale(&self) -> f32 {
        (std::f64::consts::LOG2_E * self.inverse_temperature) as f32
    }

    /// The banned ids of the piece that starts at `first`, from its start.
    #[inline(always)]
    fn banned_in(&self, first: usize, len: usize) -> impl Iterator<Item = usize> {
        let from = self.banned.partition_point(|id| *id < first);
        self.banned[from..].iter().map(move |id| id - first).take_while(move |id| *id < len)
    }
}

/// One accumulator.
type Lanes = [f32; LANES];

#[inline(always)]
fn lanes(value: f32) -> Lanes {
    [value; LANES]
}

/// Lane by lane, by value: an accumulator that loops write to in place would live in memory.
#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = lanes(0.0);
    for i in 0..LANES {
        out[i] = f(i);
    }
    out
}

/// The larger of each lane; a NaN in `values` is passed over.
#[inline(always)]
fn raise(max: Lanes, values: Lanes) -> Lanes {
    each(|i| if values[i] > max[i] { values[i] } else { max[i] })
}

/// Halves an accumulator until one lane is left: a fixed tree.
///
/// Out of line: inlined, its shape decides how the loops before it are vectorised, and badly.
#[inline(never)]
fn total(mut values: Lanes) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            values[i] += values[i + width];
        }
    }
    values[0]
}

#[inline(never)]
fn largest(values: Lanes) -> f32 {
    values.into_iter().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max })
}

#[inline(always)]
fn widen_full<T: Float>(values: [T; LANES]) -> Lanes {
    each(|i| values[i].to_f32())
}

/// Fewer than sixteen logits as f32, -inf beyond the end.
#[inline(always)]
fn widen_rest<T: Float>(part: &[T]) -> Lanes {
    let mut out = lanes(f32::NEG_INFINITY);
    out.iter_mut().zip(part).for_each(|(out, x)| *out = x.to_f32());
    out
}

/// The sums with sixteen more logits in them.
#[inline(always)]
fn add<const FMA: bool>(
    [sum, weighted]: [Lanes; 2],
    z: &Lanes,
    max: f32,
    scale: f32,
) -> [Lanes; 2] {
    let y = each(|i| (z[i] - max) * scale);
    let y = each(|i| if -127.0 > y[i] { -127.0 } else { y[i] });
    let power = each(|i| math::exp2::<FMA>(y[i]));
    [each(|i| sum[i] + power[i]), each(|i| math::fma::<FMA>(power[i], y[i], weighted[i]))]
}

/// Softcap and ban on the f32 copy of a piece that starts at `first`; the largest logit then.
#[inline(always)]
fn restrict<const FMA: bool>(
    piece: &mut [f32],
    len: usize,
    first: usize,
    how: &Reading<'_>,
) -> f32 {
    if let Some(cap) = how.softcap {
        for z in &mut piece[..len] {
            *z = cap * math::tanh::<FMA>(*z / cap);
        }
    }
    for id in how.banned_in(first, len) {
        piece[id] = f32::NEG_INFINITY;
    }
    let mut max = lanes(f32::NEG_INFINITY);
    for values in piece.as_chunks::<LANES>().0 {
        max = raise(max, *values);
    }
    largest(max)
}

/// Copies the piece that starts at `first` into `out` as f32, -inf up to a whole number of lanes; its largest logit.
#[inline(always)]
fn load<const FMA: bool, T: Float>(
    row: &[T],
    first: usize,
    how: &Reading<'_>,
    out: &mut [f32],
) -> f32 {
    let part = &row[first..row.len().min(first + PIECE)];
    let mut max = lanes(f32::NEG_INFINITY);
    let (full, rest) = part.as_chunks::<LANES>();
    let (copies, _) = out.as_chunks_mut::<LANES>();
    for (values, copy) in full.iter().zip(copies.iter_mut()) {
        *copy = widen_full(*values);
        max = raise(max, *copy);
    }
    if !rest.is_empty() {
        copies[full.len()] = widen_rest(rest);
        max = raise(max, copies[full.len()]);
    }
    if how.softcap.is_some() || how.banned_in(first, part.len()).next().is_some() {
        let padded = part.len().next_multiple_of(LANES);
        return restrict::<FMA>(&mut out[..padded], part.len(), first, how);
    }
    largest(max)
}

simd_fn! {
    /// The sums of consecutive pieces of a row, from piece `from`, one for each element of `out`.
    ///
    /// While a piece is summed the next one is read: so the arithmetic of one hides the memory of the other.
    pub(super) fn sums<T: Float>(row: &[T], from: usize, how: &Reading<'_>, scratch: &mut Scratch, out: &mut [Piece]) {
        let scale = how.scale();
        let [mut this, mut next] = scratch.0.each_mut().map(Vec::as_mut_slice);
        let mut max = load::<FMA, T>(row, from * PIECE, how, this);
        let count = out.len();
        for (i, piece) in out.iter_mut().enumerate() {
            let first = (from + i) * PIECE;
            let len = PIECE.min(row.len() - first);
            // Of a piece that is all -inf nothing is left, and -inf - -inf would be NaN.
            let reference = if max == f32::NEG_INFINITY { 0.0 } else { max };
            let mut sums = [lanes(0.0); 2];
            let after = first + len;
            let ahead = if i + 1 < count { &row[after..row.len().min(after + PIECE)] } else { &[] };
            let mut next_max = lanes(f32::NEG_INFINITY);
            let (z, _) = this[..len.next_multiple_of(LANES)].as_chunks::<LANES>();
            let (full, rest) = ahead.as_chunks::<LANES>();
            let (copies, _) = next.as_chunks_mut::<LANES>();
            // No piece is shorter than the one after it.
            let (now, later) = z.split_at(full.len());
            let blocks = now.chunks(BLOCK).zip(full.chunks(BLOCK)).zip(copies.chunks_mut(BLOCK));
            for ((z, ahead), copies) in blocks {
                for (ahead, copy) in ahead.iter().zip(copies) {
                    let values = widen_full(*ahead);
                    next_max = raise(next_max, values);
                    *copy = values;
                }
                for z in z {
                    sums = add::<FMA>(sums, z, reference, scale);
                }
            }
            for z in later {
                sums = add::<FMA>(sums, z, reference, scale);
            }
            if !rest.is_empty() {
                copies[full.len()] = widen_rest(rest);
                next_max = raise(next_max, copies[full.len()]);
            }
            *piece = Piece { max, sum: total(sums[0]), weighted: total(sums[1]) };
            max = largest(next_max);
            if how.softcap.is_some() || how.banned_in(after, ahead.len()).next().is_some() {
                let padded = ahead.len().next_multiple_of(LANES);
                max = restrict::<FMA>(&mut next[..padded], ahead.len(), after, how);
            }
            std::mem::swap(&mut this, &mut next);
        }
    }
}

simd_fn! {
    /// The first id in the piece that starts at `first` whose logit is `max`.
    fn find<T: Float>(row: &[T], first: usize, how: &Reading<'_>, scratch: &mut Scratch, max: f32) -> Option<usize> {
        load::<FMA, T>(row, first, how, &mut scratch.0[0]);
        let len = PIECE.min(row.len() - first);
        scratch.0[0][..len].iter().position(|z| *z == max).map(|at| first + at)
    }
}

simd_fn! {
    /// One logit as `how` reads it.
    fn logit<T: Float>(row: &[T], id: usize, how: &Reading<'_>) -> f32 {
        if how.banned.binary_search(&id).is_ok() {
            return f32::NEG_INFINITY;
        }
        match how.softcap {
            Some(cap) => cap * math::tanh::<FMA>(row[id].to_f32() / cap),
            None => row[id].to_f32(),
        }
    }
}

/// What the forward pass says about a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Summary {
    pub(super) logprob: f32,
    pub(super) entropy: f32,
    pub(super) logsumexp: f32,
    pub(super) argmax: i32,
}

impl Summary {
    pub(super) const IGNORED: Summary =
        Summary { logprob: 0.0, entropy: 0.0, logsumexp: 0.0, argmax: -1 };
}

/// Merges the pieces of a row, in order. A row without a finite logit has log-prob and logsumexp -inf, entropy 0 and
/// argmax -1.
pub(super) fn merge<T: Float>(
    row: &[T],
    target: usize,
    how: &Reading<'_>,
    scratch: &mut Scratch,
    pieces: &[Piece],
    want_argmax: bool,
) -> Summary {
    let max = pieces.iter().fold(f32::NEG_INFINITY, |max, p| if p.max > max { p.max } else { max });
    let per_unit = f64::from(how.scale());
    let (mut sum, mut weighted) = (0f64, 0f64);
    for piece in pieces {
        let y = (f64::from(piece.max) - f64::from(max)) * per_unit;
        if piece.max == f32::NEG_INFINITY {
            // Zero, or NaN when there was one.
            sum += f64::from(piece.sum);
        } else {
            let factor = if y == 0.0 { 1.0 } else { y.exp2() };
            let piece_sum = f64::from(piece.sum);
            sum += factor * piece_sum;
            weighted += factor * (f64::from(piece.weighted) + y.max(-1e4) * piece_sum);
        }
    }
    let argmax = pieces.iter().position(|p| want_argmax && p.max == max && max > f32::NEG_INFINITY);
    let argmax = argmax.and_then(|at| find(row, at * PIECE, how, scratch, max));
    let argmax = argmax.map_or(-1, |id| id as i32);
    if sum == 0.0 {
        let logprob = f32::NEG_INFINITY;
        return Summary { logprob, entropy: 0.0, logsumexp: f32::NEG_INFINITY, argmax };
    }
    let log_sum = sum.ln();
    let entropy = (log_sum - std::f64::consts::LN_2 * weighted / sum) as f32;
    let below = f64::from(logit(row, target, how)) - f64::from(max);
    Summary {
        logprob: (below * how.inverse_temperature - log_sum) as f32,
        entropy: if entropy < 0.0 { 0.0 } else { entropy },
        logsumexp: (f64::from(max) * how.inverse_temperature + log_sum) as f32,
        argmax,
    }
}

/// Upstream gradient and saved statistics of one row.
#[derive(Clone, Copy)]
pub(super) struct Gradient {
    pub(super) logsumexp: f32,
    pub(super) entropy: f32,
    pub(super) dlogprob: f32,
    pub(super) dentropy: f32,
}

/// `dz = p (constant + slope · y)`, where `p = 2^y`, and `once` more at the target.
#[derive(Clone, Copy)]
struct Coefficients {
    inverse_temperature: f32,
    logsumexp: f32,
    constant: f32,
    slope: f32,
    once: f32,
}

impl Coefficients {
    fn new(how: &Reading<'_>, g: &Gradient) -> Coefficients {
        let inverse = how.inverse_temperature;
        let (dlogprob, dentropy) = (f64::from(g.dlogprob), f64::from(g.dentropy));
        Coefficients {
            inverse_temperature: inverse as f32,
            logsumexp: g.logsumexp,
            // With no entropy gradient the saved entropy may be anything.
            constant: if dentropy == 0.0 {
                (-inverse * dlogprob) as f32
            } else {
                (-inverse * (dlogprob + dentropy * f64::from(g.entropy))) as f32
            },
            slope: (-inverse * dentropy * std::f64::consts::LN_2) as f32,
            once: (inverse * dlogprob) as f32,
        }
    }

    /// The gradient of one (capped) logit that is not the target.
    #[inline(always)]
    fn at<const FMA: bool>(&self, z: f32) -> f32 {
        let log_p = math::fma::<FMA>(z, self.inverse_temperature, -self.logsumexp);
        let y = log_p * std::f32::consts::LOG2_E;
        let y = if -127.0 > y { -127.0 } else { y };
        math::exp2::<FMA>(y) * math::fma::<FMA>(self.slope, y, self.constant)
    }

    /// The gradient of one raw logit under a softcap.
    #[inline(always)]
    fn at_capped<const FMA: bool>(&self, z: f32, cap: f32, once: f32) -> f32 {
        let t = math::tanh::<FMA>(z / cap);
        (self.at::<FMA>(cap * t) + once) * (1.0 - t * t)
    }
}

/// Logits whose gradients are staged as f32.
const STAGE: usize = 256;

/// Replaces each logit by `gradient` of it.
#[inline(always)]
fn overwrite<T: Float>(part: &mut [T], gradient: impl Fn(f32) -> f32) {
    if T::DTYPE == DType::F32
        && let Ok(part) = bytemuck::try_cast_slice_mut::<T, f32>(part)
    {
        let (full, rest) = part.as_chunks_mut::<LANES>();
        full.iter_mut().for_each(|values| *values = each(|i| gradient(values[i])));
        rest.iter_mut().for_each(|x| *x = gradient(*x));
        return;
    }
    let mut stage = [0f32; STAGE];
    for part in part.chunks_mut(STAGE) {
        // Conversions have loops of their own: among other arithmetic they are not vectorised.
        for (wide, x) in stage.iter_mut().zip(&*part) {
            *wide = x.to_f32();
        }
        for values in stage[..part.len().next_multiple_of(LANES)].as_chunks_mut::<LANES>().0 {
            *values = each(|i| gradient(values[i]));
        }
        for (x, wide) in part.iter_mut().zip(&stage) {
            *x = T::from_f32(*wide);
        }
    }
}

simd_fn! {
    /// Overwrites the logits from id `first` on with their gradients.
    pub(super) fn differentiate<T: Float>(part: &mut [T], first: usize, target: usize, how: &Reading<'_>, g: &Gradient) {
        let with = Coefficients::new(how, g);
        let target = target.checked_sub(first).filter(|at| *at < part.len());
        let before = target.map(|at| part[at].to_f32());
        match how.softcap {
            None => overwrite(part, |z| with.at::<FMA>(z)),
            Some(cap) => overwrite(part, |z| with.at_capped::<FMA>(z, cap, 0.0)),
        }
        if let (Some(at), Some(z)) = (target, before) {
            part[at] = T::from_f32(match how.softcap {
                None => with.at::<FMA>(z) + with.once,
                Some(cap) => with.at_capped::<FMA>(z, cap, with.once),
            });
        }
        let len = part.len();
        for id in how.banned_in(first, len) {
            part[id] = T::default();
        }
    }
}
