//! Some tokens of a run, and what one step over them leaves for the next.

/// Tokens whose steps are done one after another.
pub(super) const TILE: usize = 128;

/// What later steps need of a tile's tokens. Kept in locals, which the compiler knows to be apart from all else.
pub(super) struct Tile {
    pub live: [u32; TILE],
    /// Live, and not replayed.
    pub fresh: [u32; TILE],
    pub advantage: [f32; TILE],
    /// The loss that is being looked at.
    pub value: [f32; TILE],
    /// The clamped log ratio.
    pub log_ratio: [f32; TILE],
    /// 0 where not fresh.
    pub ratio: [f32; TILE],
    /// What the metrics of ratios count; 0 where not fresh.
    pub reported: [f32; TILE],
}

impl Tile {
    pub const EMPTY: Tile = Tile {
        live: [0; TILE],
        fresh: [0; TILE],
        advantage: [0.0; TILE],
        value: [0.0; TILE],
        log_ratio: [0.0; TILE],
        ratio: [0.0; TILE],
        reported: [0.0; TILE],
    };
}

/// The tokens of a tile.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub logprob: &'a [f32],
    pub old_logprob: &'a [f32],
    pub coefficient: f32,
}
