//! `Change::Clone`: a copy of a file, whole and durable, that has no name yet.

use crate::change::ChangeFailed;
use crate::file::StoreFile;
use crate::staging::Staged;
use crate::storage::Inner;
use std::sync::Arc;

impl Inner {
    pub(crate) fn clone_file(
        self: &Arc<Inner>,
        _file: &Arc<StoreFile>,
        _staged: Staged,
    ) -> Result<(), ChangeFailed> {
        Err(ChangeFailed::ToCome)
    }
}
