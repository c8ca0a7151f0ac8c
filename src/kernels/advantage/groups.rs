//! Which responses belong together.

use crate::error::{Error, Result};
use crate::kernels::offsets;

/// Which responses belong together.
#[derive(Clone, Copy, Debug)]
pub enum Groups<'a> {
    /// Group `g` is the responses `offsets[g]..offsets[g + 1]`; the first offset is 0, the last is `responses`.
    Offsets(&'a [i64]),
    /// Response `i` belongs to group `ids[i] >= 0`. Ids need not be contiguous nor sorted; the outputs per group are
    /// in ascending order of the ids that occur.
    Ids(&'a [i32]),
}

/// The groups as CSR offsets over a permutation of the responses.
pub(super) struct Plan {
    pub(super) offsets: Vec<usize>,
    pub(super) order: Option<Vec<usize>>,
}

impl Plan {
    /// The responses of group `g`, in order.
    pub(super) fn members(&self, group: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        let places = self.offsets[group]..self.offsets[group + 1];
        places.map(|place| self.order.as_ref().map_or(place, |order| order[place]))
    }

    /// How many groups there are.
    pub(super) fn count(&self) -> usize {
        self.offsets.len() - 1
    }
}

impl Groups<'_> {
    /// How many groups there are: the length of the outputs per group.
    ///
    /// # Errors
    /// As [`forward`](super::forward).
    pub fn count(&self) -> Result<usize> {
        let responses = match self {
            Groups::Offsets(offsets) => offsets.last().copied().unwrap_or(0).max(0) as usize,
            Groups::Ids(ids) => ids.len(),
        };
        Ok(self.plan(responses)?.count())
    }

    pub(super) fn plan(&self, responses: usize) -> Result<Plan> {
        match self {
            Groups::Offsets(offsets) => {
                let offsets = offsets::checked("advantage", "group", offsets, responses)?;
                Ok(Plan { offsets, order: None })
            }
            Groups::Ids(ids) => {
                if ids.len() != responses {
                    return Err(Error::shape(format!(
                        "advantage: {} group ids for {responses} rewards",
                        ids.len()
                    )));
                }
                if let Some(i) = ids.iter().position(|id| *id < 0) {
                    return Err(Error::index(format!(
                        "advantage: group id {} of response {i} is negative",
                        ids[i]
                    )));
                }
                let mut order: Vec<usize> = (0..responses).collect();
                order.sort_by_key(|i| ids[*i]);
                let mut offsets = vec![0];
                offsets.extend((1..responses).filter(|i| ids[order[*i]] != ids[order[i - 1]]));
                if responses > 0 {
                    offsets.push(responses);
                }
                Ok(Plan { offsets, order: Some(order) })
            }
        }
    }
}
