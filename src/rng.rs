//! Counter-based random numbers: Philox4x32-10.
//!
//! A draw is a pure function of `(seed, stream, counter)`, so the same bits come out on every device, for any thread
//! count and any batch around it, and a seed with a position is all the state there is to save.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the test below holds
//! the known answers published with Random123.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits from a counter and a key.
#[inline]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// [`philox`] of `L` counters at once, a lane each: `out[4 * lane + word]`, in a form that becomes vector instructions.
#[inline(always)]
pub fn philox_lanes<const L: usize>(
    counter: [[u32; L]; 4],
    key: [u32; 2],
    out: &mut [[u32; 4]; L],
) {
    let c = philox_vectors(counter, key);
    for lane in 0..L {
        out[lane] = [c[0][lane] as u32, c[1][lane] as u32, c[2][lane] as u32, c[3][lane] as u32];
    }
}

/// [`philox_lanes`] as it is computed: word by word, all lanes side by side, in the low halves of what is returned.
///
/// Words live in the low halves of 64-bit lanes, where a multiplication of two needs no shuffles; what stands in the
/// high halves is never looked at.
#[inline(always)]
pub fn philox_vectors<const L: usize>(counter: [[u32; L]; 4], key: [u32; 2]) -> [[u64; L]; 4] {
    const LOW: u64 = 0xFFFF_FFFF;
    let mut c = counter.map(|words| words.map(u64::from));
    let mut k = key;
    for _ in 0..10 {
        let (k0, k1) = (u64::from(k[0]), u64::from(k[1]));
        for lane in 0..L {
            let p0 = (c[0][lane] & LOW) * u64::from(MULTIPLIER[0]);
            let p1 = (c[2][lane] & LOW) * u64::from(MULTIPLIER[1]);
            c[0][lane] = (p1 >> 32) ^ c[1][lane] ^ k0;
            c[1][lane] = p1;
            c[2][lane] = (p0 >> 32) ^ c[3][lane] ^ k1;
            c[3][lane] = p0;
        }
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// What a draw is for. Streams keep the uses of one seed apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Initial weights.
    Init = 1,
    /// Which problems a task makes.
    Task = 2,
    /// The order in which data is visited.
    Shuffle = 3,
    /// Tokens drawn while sampling rollouts.
    Sample = 4,
    /// Tokens drawn by `generate`.
    Generate = 5,
    /// Anything a test or a user wants.
    Free = 6,
    /// Held-out problems: never the ones that are trained on.
    HeldOut = 7,
    /// Which tokens block diffusion masks.
    Noise = 8,
    /// Which of the candidate tokens Clip-Cov picks.
    Select = 16,
}

/// 128 random bits for position `(a, b)` of a stream: `a` is e.g. a global sequence number, `b` a position in it.
#[inline]
pub fn bits(seed: u64, stream: Stream, a: u64, b: u32) -> [u32; 4] {
    let key = [seed as u32, (seed >> 32) as u32];
    philox([b, a as u32, (a >> 32) as u32, stream as u32], key)
}

/// A float in `[0, 1)` with 24 random bits.
#[inline]
pub fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Two independent standard normal values from two 32-bit words (Box-Muller).
pub fn normal_pair(a: u32, b: u32) -> (f32, f32) {
    // (0, 1]: the logarithm of zero never happens.
    let radius = (-2.0 * (f64::from(a) + 1.0).ln() + 2.0 * 4_294_967_296f64.ln()).max(0.0).sqrt();
    let angle = std::f64::consts::TAU * f64::from(b) / 4_294_967_296.0;
    ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32)
}

/// A sequential reader of one stream, for host code that draws one value after another.
///
/// Its whole state is `(seed, stream, a, position)`: save [`Sequence::position`] and make it again with
/// [`Sequence::at`] to continue with the same bits.
#[derive(Clone, Debug)]
pub struct Sequence {
    seed: u64,
    stream: Stream,
    a: u64,
    position: u64,
}

impl Sequence {
    /// The draws of sub-stream `a`, from the beginning.
    pub fn new(seed: u64, stream: Stream, a: u64) -> Sequence {
        Sequence::at(seed, stream, a, 0)
    }

    /// The draws of sub-stream `a`, after `position` of them.
    pub fn at(seed: u64, stream: Stream, a: u64, position: u64) -> Sequence {
        Sequence { seed, stream, a, position }
    }

    /// Draws taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        let block = bits(self.seed, self.stream, self.a, (self.position / 4) as u32);
        let word = block[(self.position % 4) as usize];
        self.position += 1;
        word
    }

    /// The next float in `[0, 1)`.
    pub fn next_unit(&mut self) -> f32 {
        unit(self.next_u32())
    }

    /// The next standard normal value.
    pub fn next_normal(&mut self) -> f32 {
        let (a, b) = (self.next_u32(), self.next_u32());
        normal_pair(a, b).0
    }

    /// The next integer in `0..n` (multiply-shift; the bias is below `n / 2^32`). 0 when `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_the_same_numbers() {
        let key = [0xa409_3822, 0x299f_31d0];
        let counter: [[u32; 8]; 4] =
            std::array::from_fn(|word| std::array::from_fn(|lane| (word * 977 + lane * 31) as u32));
        let mut lanes = [[0; 4]; 8];
        philox_lanes(counter, key, &mut lanes);
        for lane in 0..8 {
            let one = philox(std::array::from_fn(|word| counter[word][lane]), key);
            assert_eq!(lanes[lane], one);
        }
    }

    #[test]
    fn a_saved_position_continues() {
        let mut whole = Sequence::new(7, Stream::Free, 3);
        let head: Vec<u32> = (0..5).map(|_| whole.next_u32()).collect();
        let mut rest = Sequence::at(7, Stream::Free, 3, whole.position());
        assert_eq!(rest.next_u32(), whole.next_u32());
        assert_eq!(head.len(), 5);
    }

    #[test]
    fn normal_moments() {
        let mut draws = Sequence::new(1, Stream::Free, 0);
        let values: Vec<f64> = (0..40_000).map(|_| f64::from(draws.next_normal())).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let var = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.03, "mean {mean} var {var}");
        assert!(normal_pair(0, 5).0.is_finite() && normal_pair(u32::MAX, 5).0.is_finite());
    }
}
