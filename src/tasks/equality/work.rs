//! A bound on the work of one comparison, so that no answer keeps a run waiting.

/// How much work may still be done for one comparison, in products of terms of 64 bits.
#[derive(Debug)]
pub(super) struct Work(u32);

impl Default for Work {
    fn default() -> Work {
        Work(20_000)
    }
}

impl Work {
    pub(super) fn spend(&mut self, cost: u64) -> Option<()> {
        self.0 = self.0.checked_sub(u32::try_from(cost).ok()?)?;
        Some(())
    }
}
