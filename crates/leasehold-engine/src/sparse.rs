//! Where a file has data, as the filesystem says (`SEEK_DATA`, `SEEK_HOLE`).

use leasehold_core::range::{BLOCK_BYTES, BlockRange};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;

/// The first of these blocks that have data, up to the first that have none; `None` if they are all in holes or past the
/// end of file. A filesystem that knows no holes has data everywhere.
pub(crate) fn next_data(file: &File, blocks: BlockRange) -> io::Result<Option<BlockRange>> {
    let data = match seek(file, SeekFrom::Data(blocks.start() * BLOCK_BYTES)) {
        Err(Errno::NXIO) => return Ok(None),
        data => data? / BLOCK_BYTES,
    };
    if data >= blocks.end() {
        return Ok(None);
    }
    let hole = seek(file, SeekFrom::Hole(data * BLOCK_BYTES))?.div_ceil(BLOCK_BYTES);
    Ok(BlockRange::new(data, hole.min(blocks.end())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn data_is_found_between_holes_and_none_past_the_end() {
        let file = tempfile::tempfile().unwrap();
        let blocks = |first, end| BlockRange::new(first, end).unwrap();
        assert_eq!(next_data(&file, blocks(0, 10)).unwrap(), None);
        file.write_all_at(&[1; 100], 1000 * 4096).unwrap();
        file.set_len(2000 * 4096).unwrap();
        let found = next_data(&file, blocks(0, 3000)).unwrap().unwrap();
        assert!(found.start() <= 1000 && found.end() > 1000, "{found:?}");
        assert_eq!(next_data(&file, blocks(0, found.start().max(1))).unwrap(), None);
        assert_eq!(next_data(&file, blocks(2500, 3000)).unwrap(), None);
    }
}
