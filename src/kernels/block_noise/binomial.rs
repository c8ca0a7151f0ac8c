//! The binomial distribution between two bounds, from `+ - × ÷` alone.
//!
//! Its terms come from the ratio of neighbours, from the mode outward, so none overflows and those that underflow do
//! not matter. The order of the sums is the order of the draw: the mode, everything above it, everything below it.

/// `count` of `places`, each with probability `rate`, given that `least <= count <= most`.
#[derive(Clone, Copy)]
pub(super) struct Binomial {
    places: u32,
    least: u32,
    most: u32,
    /// The likeliest count.
    mode: u32,
    rate: f64,
    /// Sum of the terms, the mode's being 1.
    total: f64,
    /// Sum of count times term.
    moment: f64,
}

impl Binomial {
    /// `least <= most`; both are cut to `places`, which is at least 1.
    pub fn new(places: u32, rate: f32, least: u32, most: u32) -> Binomial {
        let (least, most) = (least.min(places), most.min(places));
        let rate = f64::from(rate);
        let mode = if rate < 1.0 { ((f64::from(places) + 1.0) * rate) as u32 } else { places };
        let mode = mode.clamp(least, most);
        let mut binomial = Binomial { places, least, most, mode, rate, total: 0.0, moment: 0.0 };
        let (mut total, mut moment) = (0.0, 0.0);
        binomial.walk(|count, term| {
            total += term;
            moment += f64::from(count) * term;
            false
        });
        (binomial.total, binomial.moment) = (total, moment);
        binomial
    }

    /// The terms in order, until `found`; the last count.
    fn walk(&self, mut found: impl FnMut(u32, f64) -> bool) -> u32 {
        let (rate, other) = (self.rate, 1.0 - self.rate);
        if found(self.mode, 1.0) {
            return self.mode;
        }
        // At rate 1 every count below the highest has probability 0; the mode is that one.
        let (mut count, mut term) = (self.mode, 1.0);
        while count < self.most && other > 0.0 {
            let up = f64::from(self.places - count) * rate;
            let down = f64::from(count + 1) * other;
            term = term * up / down;
            count += 1;
            if found(count, term) {
                return count;
            }
        }
        (count, term) = (self.mode, 1.0);
        while count > self.least {
            let down = f64::from(count) * other;
            let up = f64::from(self.places - count + 1) * rate;
            term = term * down / up;
            count -= 1;
            if found(count, term) {
                return count;
            }
        }
        count
    }

    /// The count at which the cumulative probability passes `word / 2³²`.
    pub fn count(&self, word: u32) -> u32 {
        let goal = f64::from(word) * (1.0 / 4_294_967_296.0) * self.total;
        let mut sum = 0.0;
        self.walk(|_, term| {
            sum += term;
            sum > goal
        })
    }

    /// Its mean.
    pub fn mean(&self) -> f64 {
        self.moment / self.total
    }
}
