//! Plain file operations and questions, over gRPC.

use crate::block_map::BlockMap;
use crate::caller::this_process;
use crate::credentials::{Credentials, Shown};
use crate::error::{CallError, ConnectError, Reason};
use crate::event::Event;
use crate::location::Server;
use crate::proto::leasehold_client::LeaseholdClient;
use crate::{ByteRange, proto};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use leasehold_fabric::Kind;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is taken: a listing of a large directory is one message.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// The most bytes in one piece of a write through gRPC.
const WRITE_PIECE_BYTES: usize = 1 << 20;

/// How a scrub goes about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubOptions {
    /// Take what is on disk for committed, wherever it is not what was committed.
    pub adopt: bool,
    /// At most so many bytes a second.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// The calls, with what is shown with each.
pub(crate) type Calls = LeaseholdClient<InterceptedService<Channel, Shown>>;

/// A control connection. Cheap to clone; clones share the connection.
///
/// Every operation here may break leases that are in its way, and then waits for them: at most the grace period and
/// the fence. Dropping the future gives up waiting.
#[derive(Clone, Debug)]
pub struct Client {
    calls: Calls,
    server: Server,
    credentials: Option<Arc<Credentials>>,
    caller: proto::Identity,
    fabric: Option<Kind>,
}

impl Client {
    /// Connects without credentials: by a unix socket, or to a server that asks for none.
    ///
    /// # Errors
    /// If nobody answers within 5 seconds, or not as a server that asks for none.
    pub async fn connect(server: &Server) -> Result<Client, ConnectError> {
        Client::connect_with(server, None).await
    }

    /// Connects. With credentials, over TLS: the server is the one that they are for, and nobody else reads or changes what is
    /// said. (Leased bytes go by the data connection, which is encrypted where the server has it so.) On a unix socket, which needs none, they are
    /// left out.
    ///
    /// # Errors
    /// [`ConnectError`]; also if the server does not accept the credentials.
    pub async fn connect_with(
        server: &Server,
        credentials: Option<Arc<Credentials>>,
    ) -> Result<Client, ConnectError> {
        let address = |source| ConnectError::Address { server: server.clone(), source };
        let unreachable = |source: tonic::transport::Error| {
            let (server, why) = (server.clone(), innermost(&source));
            match speaks_no_tls(&source) {
                true => ConnectError::Untrusted { server, why },
                false => ConnectError::Unreachable { server, why },
            }
        };
        let channel = match server {
            Server::Tcp { host, port } => {
                let scheme = if credentials.is_some() { "https" } else { "http" };
                let uri = if host.contains(':') {
                    format!("{scheme}://[{host}]:{port}")
                } else {
                    format!("{scheme}://{host}:{port}")
                };
                let endpoint = settings(Endpoint::from_shared(uri).map_err(address)?);
                let endpoint = match &credentials {
                    Some(credentials) => endpoint.tls_config(credentials.tls()).map_err(|source| {
                        let why = innermost(&source);
                        ConnectError::Credentials { why }
                    })?,
                    None => endpoint,
                };
                endpoint.connect().await.map_err(unreachable)?
            }
            Server::Unix(path) => {
                let path = path.clone();
                let dial = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The address is only what the HTTP layer shows; the connector ignores it.
                let endpoint = settings(Endpoint::from_static("http://localhost"));
                endpoint.connect_with_connector(dial).await.map_err(unreachable)?
            }
        };
        // A token is for the one server that TLS has shown it to be.
        let over_tls = credentials.as_ref().filter(|_| matches!(server, Server::Tcp { .. }));
        let shown = Shown(over_tls.and_then(|credentials| credentials.bearer()));
        let client = Client {
            calls: LeaseholdClient::with_interceptor(channel, shown)
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
            server: server.clone(),
            credentials,
            caller: (&this_process()).into(),
            fabric: None,
        };
        // Whether the two ends agree about TLS, and whether the server takes a certificate, shows in the first answer only.
        if matches!(server, Server::Tcp { .. })
            && let Err(error) = client.status().await
        {
            let (server, why) = (server.clone(), error.message);
            return Err(match error.reason {
                Reason::Unauthenticated => ConnectError::Refused { server, why },
                _ => ConnectError::NoAnswer { server, why },
            });
        }
        Ok(client)
    }

    /// Sessions connect by this kind of fabric. `None`, as it is at first: by an RDMA device where both ends have one that
    /// reaches the other, else over TCP.
    #[must_use]
    pub fn by(self, fabric: Option<Kind>) -> Client {
        Client { fabric, ..self }
    }

    /// See [`Client::by`].
    pub(crate) fn fabric(&self) -> Option<Kind> {
        self.fabric
    }

    /// One more connection to the same server, with the same credentials.
    ///
    /// # Errors
    /// As for [`Client::connect_with`].
    pub async fn connect_again(&self) -> Result<Client, ConnectError> {
        Ok(Client::connect_with(&self.server, self.credentials.clone()).await?.by(self.fabric))
    }

    /// Where it is connected.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn calls(&self) -> Calls {
        self.calls.clone()
    }

    pub(crate) fn caller(&self) -> proto::Identity {
        self.caller.clone()
    }

    fn me(&self) -> Option<proto::Identity> {
        Some(self.caller())
    }

    /// What the server is, and what it holds right now.
    pub async fn status(&self) -> Result<proto::StatusResponse, CallError> {
        Ok(self.calls().status(proto::StatusRequest {}).await?.into_inner())
    }

    /// Creates an empty file, unless it exists.
    pub async fn create(&self, path: &str) -> Result<proto::File, CallError> {
        let request = proto::CreateRequest { path: path.to_owned() };
        Ok(self.calls().create(request).await?.into_inner().file.unwrap_or_default())
    }

    /// What is known of a file or directory.
    pub async fn stat(&self, path: &str) -> Result<proto::File, CallError> {
        let request = proto::StatRequest { path: path.to_owned() };
        Ok(self.calls().stat(request).await?.into_inner().file.unwrap_or_default())
    }

    /// What is in a directory, sorted by name; or the file itself.
    pub async fn list(&self, path: &str) -> Result<Vec<proto::File>, CallError> {
        let request = proto::ListRequest { path: path.to_owned() };
        Ok(self.calls().list(request).await?.into_inner().files)
    }

    /// Makes a directory; with `parents`, those that are missing too, and none is no error.
    pub async fn make_directory(&self, path: &str, parents: bool) -> Result<(), CallError> {
        let request = proto::MakeDirectoryRequest { path: path.to_owned(), parents };
        self.calls().make_directory(request).await?;
        Ok(())
    }

    /// Renames. Breaks no lease on `from`; removes a file at `to`, which does on that one.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), CallError> {
        let request = proto::RenameRequest { from: from.to_owned(), to: to.to_owned(), caller: self.me() };
        self.calls().rename(request).await?;
        Ok(())
    }

    /// Removes a file or an empty directory.
    pub async fn remove(&self, path: &str) -> Result<(), CallError> {
        let request = proto::RemoveRequest { path: path.to_owned(), caller: self.me() };
        self.calls().remove(request).await?;
        Ok(())
    }

    /// Sets a file's size.
    pub async fn truncate(&self, path: &str, size: u64) -> Result<(), CallError> {
        let request = proto::TruncateRequest { path: path.to_owned(), size, caller: self.me() };
        self.calls().truncate(request).await?;
        Ok(())
    }

    /// Frees a range, which then reads as zeros.
    pub async fn punch(&self, path: &str, range: ByteRange) -> Result<(), CallError> {
        let request =
            proto::PunchRequest { path: path.to_owned(), range: Some(range.into()), caller: self.me() };
        self.calls().punch(request).await?;
        Ok(())
    }

    /// Zeroes a range up to the end of file; it stays allocated.
    pub async fn zero(&self, path: &str, range: ByteRange) -> Result<(), CallError> {
        let request =
            proto::ZeroRequest { path: path.to_owned(), range: Some(range.into()), caller: self.me() };
        self.calls().zero(request).await?;
        Ok(())
    }

    /// Takes a range of whole blocks out of a file; what is behind it moves to the front.
    pub async fn collapse(&self, path: &str, range: ByteRange) -> Result<(), CallError> {
        let request =
            proto::CollapseRequest { path: path.to_owned(), range: Some(range.into()), caller: self.me() };
        self.calls().collapse(request).await?;
        Ok(())
    }

    /// Makes a durable copy of a file as it is committed at one moment, which shares its blocks where the filesystem can.
    /// `replace`: it may take the place of a file that has the name. Returns whether it shares its blocks.
    pub async fn clone_file(&self, from: &str, to: &str, replace: bool) -> Result<bool, CallError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let request = proto::CloneFileRequest { from, to, replace, caller: self.me() };
        Ok(self.calls().clone_file(request).await?.into_inner().shares_blocks)
    }

    /// Copies committed bytes of `from`, up to its end, to `offset` of `to`, which exists. Returns how many; they are
    /// durable after a [`Client::sync`].
    pub async fn copy_range(
        &self,
        from: &str,
        range: ByteRange,
        to: &str,
        offset: u64,
    ) -> Result<u64, CallError> {
        let request = proto::CopyRangeRequest {
            from: from.to_owned(),
            range: Some(range.into()),
            to: to.to_owned(),
            offset,
            caller: self.me(),
        };
        Ok(self.calls().copy_range(request).await?.into_inner().copied)
    }

    /// Gives a file one more name.
    pub async fn link(&self, from: &str, to: &str) -> Result<(), CallError> {
        self.calls().link(proto::LinkRequest { from: from.to_owned(), to: to.to_owned() }).await?;
        Ok(())
    }

    /// Makes a symbolic link, which the store keeps and never follows.
    pub async fn symlink(&self, target: &str, path: &str) -> Result<(), CallError> {
        let request = proto::SymlinkRequest { target: target.to_owned(), path: path.to_owned() };
        self.calls().symlink(request).await?;
        Ok(())
    }

    /// What a symbolic link says.
    pub async fn read_link(&self, path: &str) -> Result<String, CallError> {
        let request = proto::ReadLinkRequest { path: path.to_owned() };
        Ok(self.calls().read_link(request).await?.into_inner().target)
    }

    /// Writes back what is committed of a file, and forgets what the server holds in memory of it. Returns how many bytes
    /// of memory are free now.
    pub async fn evict(&self, path: &str) -> Result<u64, CallError> {
        Ok(self.calls().evict(proto::EvictRequest { path: path.to_owned() }).await?.into_inner().bytes)
    }

    /// fsync: returns once every commit that was acknowledged before is durable.
    pub async fn sync(&self, path: &str) -> Result<(), CallError> {
        let request = proto::SyncRequest { path: path.to_owned(), ..Default::default() };
        self.calls().sync(request).await?;
        Ok(())
    }

    /// What the store knows of the blocks of a range, without reading them: holes, and checksums. What was committed before
    /// is durable on return.
    pub async fn block_map(&self, path: &str, range: ByteRange) -> Result<BlockMap, CallError> {
        let mut map = BlockMap::starting_at(range.start());
        loop {
            let rest = ByteRange::new(map.end(), range.end()).map(proto::Range::from);
            let Some(rest) = rest else { return Ok(map) };
            let request = proto::BlockMapRequest { path: path.to_owned(), range: Some(rest) };
            if !map.append(self.calls().block_map(request).await?.into_inner())? {
                return Ok(map);
            }
        }
    }

    /// The mode, the time of modification and the extended attributes of a file or directory.
    pub async fn attributes(&self, path: &str) -> Result<proto::Attributes, CallError> {
        let request = proto::AttributesRequest { path: path.to_owned() };
        Ok(self.calls().attributes(request).await?.into_inner().attributes.unwrap_or_default())
    }

    /// Sets them; what is absent stays.
    pub async fn set_attributes(&self, path: &str, attributes: proto::Attributes) -> Result<(), CallError> {
        let request = proto::SetAttributesRequest { path: path.to_owned(), attributes: Some(attributes) };
        self.calls().set_attributes(request).await?;
        Ok(())
    }

    /// Reads committed bytes through gRPC: for small things. `length`: `None` to the end of the file.
    pub async fn read(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + use<>, CallError> {
        let request = proto::ReadRequest { path: path.to_owned(), offset, length };
        let pieces = self.calls().read(request).await?.into_inner();
        Ok(pieces.map(|piece| Ok(piece?.data)))
    }

    /// Writes through gRPC, breaking the leases in the way: for small things. Returns the file's size.
    pub async fn write(&self, path: &str, offset: u64, bytes: Bytes) -> Result<u64, CallError> {
        let header = proto::WriteHeader { path: path.to_owned(), offset, caller: self.me() };
        let first = proto::WriteRequest { header: Some(header), data: Bytes::new() };
        let pieces = pieces(bytes).map(|data| proto::WriteRequest { header: None, data });
        let requests = tokio_stream::iter(std::iter::once(first).chain(pieces));
        Ok(self.calls().write(requests).await?.into_inner().size)
    }

    /// Who holds what; of all files if `path` is `None`.
    pub async fn leases(&self, path: Option<&str>) -> Result<Vec<proto::Lease>, CallError> {
        let request = proto::LeasesRequest { path: path.unwrap_or_default().to_owned() };
        Ok(self.calls().leases(request).await?.into_inner().leases)
    }

    /// The newest breaks, oldest first. `limit` 0: as many as the server likes.
    pub async fn breaks(&self, limit: u32) -> Result<Vec<proto::BreakRecord>, CallError> {
        Ok(self.calls().breaks(proto::BreaksRequest { limit }).await?.into_inner().breaks)
    }

    /// Who waits for whom on a file.
    pub async fn why(&self, path: &str) -> Result<Vec<proto::Wait>, CallError> {
        let request = proto::WhyRequest { path: path.to_owned() };
        Ok(self.calls().why(request).await?.into_inner().waits)
    }

    /// Everything that happens on the server from now on.
    pub async fn watch(&self) -> Result<impl Stream<Item = Result<Event, CallError>> + use<>, CallError> {
        let events = self.calls().watch(proto::WatchRequest {}).await?.into_inner();
        Ok(events.map(|event| Ok(Event::try_from(event?)?)))
    }

    /// The directory `path` as a filesystem of this machine: what its kernel asks goes there, and the replies come back. The
    /// server says no before the first of them, if it does.
    pub async fn mount(
        &self,
        path: &str,
        requests: mpsc::Receiver<proto::mount_request::What>,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + use<>, CallError> {
        use proto::mount_request::What;
        let header = proto::MountHeader { path: path.to_owned(), caller: self.me() };
        let requests = tokio_stream::once(What::Header(header)).chain(ReceiverStream::new(requests));
        let requests = requests.map(|what| proto::MountRequest { what: Some(what) });
        let replies = self.calls().mount(requests).await?.into_inner();
        Ok(replies.map(|response| Ok(response?.reply)))
    }

    /// Verifies every block of a file, or of all: one item a file, then one with the totals.
    pub async fn scrub(
        &self,
        path: Option<&str>,
        options: ScrubOptions,
    ) -> Result<impl Stream<Item = Result<proto::scrub_response::Item, CallError>> + use<>, CallError> {
        let request = proto::ScrubRequest {
            path: path.unwrap_or_default().to_owned(),
            adopt: options.adopt,
            bytes_per_second: options.bytes_per_second.map_or(0, NonZeroU64::get),
            caller: self.me(),
        };
        let items = self.calls().scrub(request).await?.into_inner();
        let missing = || CallError::from(crate::convert::Malformed::Missing("item"));
        Ok(items.map(move |response| response?.item.ok_or_else(missing)))
    }
}

fn settings(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = bytes.len().min(WRITE_PIECE_BYTES);
        (length > 0).then(|| bytes.split_to(length))
    })
}

/// Whether the peer was reached, and then one end did not take the other for what it should be.
fn speaks_no_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData)
    })
}

/// The innermost cause: what the system said ("Connection refused (os error 111)").
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_cut_into_pieces_of_a_mebibyte_and_nothing_is_no_piece() {
        let lengths: Vec<usize> =
            pieces(Bytes::from(vec![0; (2 << 20) + 5])).map(|piece| piece.len()).collect();
        assert_eq!(lengths, [1 << 20, 1 << 20, 5]);
        assert_eq!(pieces(Bytes::new()).count(), 0);
    }

    #[tokio::test]
    async fn when_nobody_listens_the_error_names_the_server_and_the_cause() {
        let server = Server::Unix("/nonexistent/control.sock".into());
        let error = Client::connect(&server).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/control.sock"), "{error}");
        assert!(error.contains("No such file or directory"), "{error}");
    }
}
