//! What each call asks for: the table by which tenants are kept apart.
//!
//! A message without an entry here cannot be taken in by `Calls::enter`. What a call does to a file, it asks of each path that
//! it names; what is below a path is asked with it, since the store follows no links.

use leasehold_client::proto;

/// What a caller must be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask<'a> {
    /// To act for the session of this secret.
    Session(&'a [u8]),
    /// To read what is at this path, and below it.
    Read(&'a str),
    /// To change it.
    Write(&'a str),
}

/// A call's message, or the first of its stream.
pub(crate) trait Asks {
    /// All that it asks for; nothing, if everybody who is known may call.
    fn asks(&self) -> Vec<Ask<'_>>;
}

macro_rules! table {
    ($($message:ident: $($ask:ident($field:ident)),*;)*) => {
        $(impl Asks for proto::$message {
            fn asks(&self) -> Vec<Ask<'_>> {
                vec![$(Ask::$ask(&self.$field)),*]
            }
        })*
    };
}

table! {
    // What they answer is cut to what the caller may see.
    StatusRequest: ;
    BreaksRequest: ;
    WatchRequest: ;

    OpenSessionRequest: ;
    KeepAliveRequest: Session(session);
    CloseSessionRequest: Session(session);
    EventsRequest: Session(session);
    ReleaseRequest: Session(session);
    CommitRequest: Session(session);

    ReadRequest: Read(path);
    StatRequest: Read(path);
    ListRequest: Read(path);
    ReadLinkRequest: Read(path);
    BlockMapRequest: Read(path);
    AttributesRequest: Read(path);
    WhyRequest: Read(path);

    WriteHeader: Write(path);
    CreateRequest: Write(path);
    MakeDirectoryRequest: Write(path);
    SymlinkRequest: Write(path);
    RemoveRequest: Write(path);
    TruncateRequest: Write(path);
    PunchRequest: Write(path);
    ZeroRequest: Write(path);
    CollapseRequest: Write(path);
    EvictRequest: Write(path);
    SetAttributesRequest: Write(path);
    MountHeader: Write(path);

    // One more name is one more way to write.
    LinkRequest: Write(from), Write(to);
    RenameRequest: Write(from), Write(to);
    CloneFileRequest: Read(from), Write(to);
    CopyRangeRequest: Read(from), Write(to);
}

impl Asks for proto::AcquireRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        let mut asks = vec![Ask::Session(&self.session)];
        asks.extend(self.wants.iter().map(|want| match want.access() {
            proto::Access::Read if !want.create => Ask::Read(&want.path),
            _ => Ask::Write(&want.path),
        }));
        asks
    }
}

impl Asks for proto::SyncRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        let mut asks = Vec::new();
        if !self.session.is_empty() {
            asks.push(Ask::Session(&self.session));
        }
        match &self.lease {
            Some(lease) => asks.push(Ask::Session(&lease.session)),
            None if self.paths.is_empty() => asks.push(Ask::Read(&self.path)),
            None => asks.extend(self.paths.iter().map(|path| Ask::Read(path))),
        }
        asks
    }
}

impl Asks for proto::LeasesRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        // Of all files: cut to what the caller may see.
        if self.path.is_empty() { Vec::new() } else { vec![Ask::Read(&self.path)] }
    }
}

impl Asks for proto::ScrubRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        let path = if self.path.is_empty() { "/" } else { &self.path };
        vec![if self.adopt { Ask::Write(path) } else { Ask::Read(path) }]
    }
}
