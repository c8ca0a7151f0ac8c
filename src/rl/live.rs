//! An episode while it is written: what stands in the cache, and what is new.

use super::episode::Episode;

/// An episode that is being written.
pub(super) struct Live<'a> {
    /// Which of the call's episodes it is.
    pub index: usize,
    /// The episode.
    pub episode: &'a mut Episode,
    /// The prompt's tokens and the episode's.
    text: Vec<i32>,
    /// The tokens before this one are in the cache.
    cached: usize,
}

impl<'a> Live<'a> {
    /// An episode behind its prompt, which is in the cache.
    pub fn new(index: usize, episode: &'a mut Episode, prompt: &[i32]) -> Live<'a> {
        Live { index, episode, text: prompt.to_vec(), cached: prompt.len() }
    }

    /// All tokens, and the index of the first that is not in the cache.
    pub fn newest(&self) -> (&[i32], usize) {
        (&self.text, self.cached)
    }

    /// Notes that all tokens are in the cache.
    pub fn read(&mut self) {
        self.cached = self.text.len();
    }

    /// Adds a token of the policy, whose log-prob the drawing has noted.
    pub fn write(&mut self, id: i32) {
        self.text.push(id);
        self.episode.tokens.push(id);
        self.episode.mask.push(1);
    }

    /// Adds tokens of the environment.
    pub fn hear(&mut self, reply: &[i32]) {
        self.text.extend_from_slice(reply);
        self.episode.tokens.extend_from_slice(reply);
        let length = self.episode.tokens.len();
        self.episode.mask.resize(length, 0);
        self.episode.logprob.resize(length, 0.0);
        if let Some(drawn) = &mut self.episode.drawn_logprob {
            drawn.resize(length, 0.0);
        }
    }
}
