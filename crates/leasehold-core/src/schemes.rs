//! The designs that the threads propose, as data.

use crate::scheme::{Admission, DataPath, DirtyWhen, FsyncRule, LayoutRule, Scheme, Writeback};

/// get_user_pages, DMA, set_page_dirty, put_page: what RDMA has done since 2005.
/// Source: John Hubbard, 2018-05-18; Jason Gunthorpe, 2018-05-18.
pub const NAIVE: Scheme = Scheme {
    name: "naive",
    admission: Admission::Allow,
    writeback: Writeback::AsIs,
    layout: LayoutRule::Ignore,
    data_path: DataPath::FileFrames,
    dirty: DirtyWhen { registered: true, released: true, committed: false },
    fsync: FsyncRule::Acknowledge,
};

/// The DAX layout break as it was merged: truncate waits for the pins, without bound, and the holder hears nothing.
/// Source: Dan Williams, 2018-05-18.
pub const BREAK_LAYOUTS: Scheme = Scheme { name: "break_layouts", layout: LayoutRule::Wait, ..NAIVE };

/// Ours: a lease on a byte range tied to one key; the commit fences; a break notifies, waits the grace period, and
/// fences only that lease. The only scheme that may serve a store.
pub const LEASEHOLD: Scheme = Scheme {
    name: "leasehold",
    admission: Admission::Lease,
    writeback: Writeback::FencedAtCommit,
    layout: LayoutRule::Break,
    data_path: DataPath::PrivateFrames,
    dirty: DirtyWhen { registered: false, released: false, committed: true },
    fsync: FsyncRule::CommittedBytes,
};

/// Every scheme that the core can run.
pub const ALL: [Scheme; 3] = [NAIVE, BREAK_LAYOUTS, LEASEHOLD];
