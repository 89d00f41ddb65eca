//! `Change::Collapse`: blocks are taken out, and what is behind them moves to the front.

use crate::change::ChangeFailed;
use crate::file::StoreFile;
use crate::storage::Inner;
use leasehold_core::range::ByteRange;
use std::sync::Arc;

/// Why a range cannot be taken out of any file of this store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum CollapseRefused {
    /// The filesystem has no such operation.
    #[error(
        "the store's filesystem cannot take {range} out of a file (ext4 and XFS can); copy what is to stay to a new file, and \
         rename that over this one"
    )]
    Unsupported { range: ByteRange },
    /// It takes out only whole units.
    #[error(
        "{range} cannot be taken out of a file: the store's filesystem takes out multiples of {unit} bytes; align both ends to \
         that, or copy what is to stay to a new file, and rename that over this one"
    )]
    Unaligned { range: ByteRange, unit: u64 },
}

impl Inner {
    pub(crate) fn check_collapse(&self, range: ByteRange) -> Result<(), CollapseRefused> {
        match self.store.collapse_unit {
            None => Err(CollapseRefused::Unsupported { range }),
            Some(unit) if !range.start().is_multiple_of(unit) || !range.end().is_multiple_of(unit) => {
                Err(CollapseRefused::Unaligned { range, unit })
            }
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn collapse(
        self: &Arc<Inner>,
        _file: &Arc<StoreFile>,
        range: ByteRange,
    ) -> Result<(), ChangeFailed> {
        self.check_collapse(range)?;
        Err(ChangeFailed::ToCome)
    }
}
