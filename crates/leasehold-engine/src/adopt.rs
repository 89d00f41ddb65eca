//! `Change::Adopt`: the bytes on disk are taken for what was committed.

use crate::change::ChangeFailed;
use crate::file::StoreFile;
use crate::storage::Inner;
use leasehold_core::range::ByteRange;
use std::sync::Arc;

impl Inner {
    /// The size, if the range reaches past the end of file.
    pub(crate) fn adopt(
        self: &Arc<Inner>,
        _file: &Arc<StoreFile>,
        _range: ByteRange,
    ) -> Result<Option<u64>, ChangeFailed> {
        Err(ChangeFailed::ToCome)
    }
}
