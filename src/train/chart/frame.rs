//! The part of a chart that values are drawn in, and its scales.

pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    /// Steps at its left and right edge.
    pub(super) steps: (f64, f64),
    /// Values at its lower and upper edge.
    pub(super) values: (f64, f64),
}

impl Frame {
    pub(super) fn x(&self, step: f64) -> f64 {
        let (first, last) = self.steps;
        self.left + (step - first) / (last - first) * (self.right - self.left)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        let (low, high) = self.values;
        self.bottom - (value - low) / (high - low) * (self.bottom - self.top)
    }
}
