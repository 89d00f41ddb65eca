//! What is committed in a file, block by block, without reading its data.

use crate::file::StoreFile;
use crate::sidecar::BlockState;
use crate::storage::Inner;
use crate::sums::SumsError;
use leasehold_core::range::BlockRange;

/// Blocks in a row that are in the same state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// Which.
    pub blocks: BlockRange,
    /// Their state.
    pub state: MapState,
}

/// What is committed in a run of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapState {
    /// Nothing: they read as zeros.
    Hole,
    /// Bytes with these CRC32Cs, one for each block; of the file's last block, with zeros up to 4096.
    Known(Vec<u32>),
    /// Bytes that came from elsewhere and that nobody has read yet.
    Unknown,
    /// A crash tore them: reads fail.
    Torn,
}

impl MapState {
    fn of(state: BlockState) -> MapState {
        match state {
            BlockState::Hole => MapState::Hole,
            BlockState::Known(crc) => MapState::Known(vec![crc]),
            BlockState::Unknown => MapState::Unknown,
            BlockState::Torn => MapState::Torn,
        }
    }

    /// Takes the block into the run if it is in the same state.
    fn joins(&mut self, state: BlockState) -> bool {
        match (self, state) {
            (MapState::Known(crcs), BlockState::Known(crc)) => {
                crcs.push(crc);
                true
            }
            (MapState::Hole, BlockState::Hole)
            | (MapState::Unknown, BlockState::Unknown)
            | (MapState::Torn, BlockState::Torn) => true,
            _ => false,
        }
    }
}

/// Appends blocks to the map.
pub(crate) fn append(map: &mut Vec<MapRun>, blocks: BlockRange, state: BlockState) {
    if let Some(last) = map.last_mut()
        && last.blocks.end() == blocks.start()
        && (blocks.len() == 1 || !matches!(state, BlockState::Known(_)))
        && last.state.joins(state)
    {
        last.blocks = BlockRange::new(last.blocks.start(), blocks.end()).expect("it only grew");
    } else {
        map.push(MapRun { blocks, state: MapState::of(state) });
    }
}

impl Inner {
    pub(crate) fn block_map(&self, file: &StoreFile, blocks: BlockRange) -> Result<Vec<MapRun>, SumsError> {
        let mut map = Vec::new();
        let end = blocks.end().min(file.sums().header.size.div_ceil(4096));
        let mut block = blocks.start();
        while block < end {
            // Others get their turn in between.
            block = file.sums().map(&*self.disk, block, end, &mut map)?;
        }
        Ok(map)
    }
}
