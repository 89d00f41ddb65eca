//! Scrub: which files to read, and what to make of what the reads find.
//!
//! A scrub must not look at blocks with a write under way, so it reads as every other reader does: the engine asks the core
//! for `Input::Read` of each file in steps, and the load that follows verifies each block, tells the observer of
//! mismatches, and adopts what was unknown. What is left for a scrub is to walk ([`Storage::walk`]), and to count
//! ([`Storage::survey`]).
//!
//! [`Storage::walk`]: crate::storage::Storage::walk
//! [`Storage::survey`]: crate::storage::Storage::survey

use crate::namespace::{Kind, NamespaceError};
use crate::path::StorePath;
use crate::storage::Inner;
use crate::sums::SumsError;
use leasehold_core::range::BlockRange;

/// How many blocks are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Nothing is committed there.
    pub holes: u64,
    /// With a checksum.
    pub known: u64,
    /// Without one yet: a read would adopt them.
    pub unknown: u64,
    /// Torn by a crash.
    pub torn: u64,
}

impl std::ops::AddAssign for Survey {
    fn add_assign(&mut self, other: Survey) {
        self.holes += other.holes;
        self.known += other.known;
        self.unknown += other.unknown;
        self.torn += other.torn;
    }
}

impl Inner {
    /// Calls `visit` with every ordinary file below `from`, in order, until it answers `false`.
    pub(crate) fn walk(
        &self,
        from: &StorePath,
        visit: &mut dyn FnMut(&StorePath) -> bool,
    ) -> Result<bool, NamespaceError> {
        for entry in self.list(from)? {
            // Names that no path can have were not made through us.
            let Ok(path) = from.join(&entry.name) else { continue };
            let on = match entry.kind {
                Kind::File => visit(&path),
                Kind::Directory => match self.walk(&path, visit) {
                    // Removed meanwhile.
                    Err(NamespaceError::NotFound { .. }) => true,
                    other => other?,
                },
                Kind::Link | Kind::Other => true,
            };
            if !on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn survey(
        &self,
        file: &crate::file::StoreFile,
        blocks: BlockRange,
    ) -> Result<Survey, SumsError> {
        let mut survey = Survey::default();
        let end = blocks.end().min(file.sums().header.size.div_ceil(4096));
        let mut block = blocks.start();
        while block < end {
            // Others get their turn in between.
            let (next, counted) = file.sums().survey(&*self.disk, block, end)?;
            survey += counted;
            block = next;
        }
        Ok(survey)
    }
}
