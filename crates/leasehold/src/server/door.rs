//! Who gets a control connection: so many at once, and so many a second, from one address, and so many of all.
//!
//! A connection costs memory and a handshake before its peer has shown who it is, so this is decided by its address alone, when it is
//! accepted. One too many is closed at once, and the others do not notice.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long nothing is accepted after the system had no room for one more: it will not have any a moment later.
const PAUSE: Duration = Duration::from_millis(100);
/// How many seconds' worth of connections may come at once.
const BURST_SECONDS: f64 = 4.0;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) connections_per_address_max: usize,
    pub(crate) connections_per_second_max: u32,
}

/// The connections that come in, as long as the listener lives.
pub(crate) fn guests(listener: TcpListener, limits: Limits) -> impl Stream<Item = io::Result<Guest>> {
    let door = Arc::new(Door { limits, visits: Mutex::default() });
    futures_util::stream::unfold((listener, door), |(listener, door)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => match enter(&door, stream, from) {
                    Ok(guest) => return Some((Ok(guest), (listener, door))),
                    Err(why) => tracing::debug!(%from, "a control connection was closed: {why}"),
                },
                Err(error) => {
                    tracing::warn!("no control connection can be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

struct Door {
    limits: Limits,
    visits: Mutex<HashMap<IpAddr, Visits>>,
}

/// Of one address.
struct Visits {
    open: usize,
    /// How many more may come at once.
    left: f64,
    counted: Instant,
}

fn enter(door: &Arc<Door>, stream: TcpStream, from: SocketAddr) -> Result<Guest, String> {
    let address = from.ip().to_canonical();
    // An answer behind an event would otherwise wait 40 ms for the peer's acknowledgement.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    door.count(address, Instant::now())?;
    Ok(Guest { stream, _visit: Visit { door: door.clone(), address } })
}

impl Door {
    fn visits(&self) -> MutexGuard<'_, HashMap<IpAddr, Visits>> {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, address: IpAddr, now: Instant) -> Result<(), String> {
        let Limits { connections_max, connections_per_address_max, connections_per_second_max } = self.limits;
        let burst = f64::from(connections_per_second_max) * BURST_SECONDS;
        let gained = |visits: &Visits| {
            let since = now.saturating_duration_since(visits.counted).as_secs_f64();
            (visits.left + since * f64::from(connections_per_second_max)).min(burst)
        };
        let mut all = self.visits();
        if all.values().map(|visits| visits.open).sum::<usize>() >= connections_max {
            return Err(format!("connections_max is {connections_max}"));
        }
        // Who has nothing open, and could come as often as anybody, need not be remembered.
        all.retain(|other, visits| *other == address || visits.open > 0 || gained(visits) < burst);
        let visits = all.entry(address).or_insert(Visits { open: 0, left: burst, counted: now });
        (visits.left, visits.counted) = (gained(visits), now);
        if visits.open >= connections_per_address_max {
            return Err(format!("connections_per_address_max is {connections_per_address_max}"));
        }
        if visits.left < 1.0 {
            return Err(format!("connections_per_second_max is {connections_per_second_max}"));
        }
        visits.left -= 1.0;
        visits.open += 1;
        Ok(())
    }
}

/// Counts as open until it is dropped.
struct Visit {
    door: Arc<Door>,
    address: IpAddr,
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(visits) = self.door.visits().get_mut(&self.address) {
            visits.open -= 1;
        }
    }
}

/// A connection that was let in.
pub(crate) struct Guest {
    stream: TcpStream,
    _visit: Visit,
}

impl Connected for Guest {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    const LIMITS: Limits =
        Limits { connections_max: 5, connections_per_address_max: 3, connections_per_second_max: 1 };

    fn door(limits: Limits) -> Arc<Door> {
        Arc::new(Door { limits, visits: Mutex::default() })
    }

    fn enter(door: &Arc<Door>, last: u8, now: Instant) -> Result<Visit, String> {
        let address = IpAddr::from([10, 0, 0, last]);
        door.count(address, now).map(|()| Visit { door: door.clone(), address })
    }

    #[test]
    fn an_address_has_its_connections_and_no_more_and_others_have_theirs() {
        let (door, now) = (door(LIMITS), Instant::now());
        let mut first: Vec<Visit> = (0..3).map(|_| enter(&door, 1, now).unwrap()).collect();
        assert!(enter(&door, 1, now).err().unwrap().contains("connections_per_address_max is 3"));
        let _second: Vec<Visit> = (0..2).map(|_| enter(&door, 2, now).unwrap()).collect();
        assert!(enter(&door, 3, now).err().unwrap().contains("connections_max is 5"));
        first.pop();
        let _third = enter(&door, 3, now).unwrap();
    }

    #[test]
    fn who_comes_again_and_again_waits_and_is_forgotten_afterwards() {
        let (door, start) = (door(LIMITS), Instant::now());
        for _ in 0..4 {
            drop(enter(&door, 1, start).unwrap());
        }
        assert!(enter(&door, 1, start).err().unwrap().contains("connections_per_second_max is 1"));
        drop(enter(&door, 2, start).unwrap());
        let later = start + Duration::from_millis(1100);
        drop(enter(&door, 1, later).unwrap());
        assert!(enter(&door, 1, later).is_err());
        drop(enter(&door, 3, start + Duration::from_secs(60)).unwrap());
        assert_eq!(door.visits().len(), 1, "of a million addresses, those of now are remembered");
    }

    /// An acquire over TCP once took 40 ms: its answer waited behind the event that tells of the grant.
    #[tokio::test]
    async fn what_is_sent_does_not_wait_and_one_too_many_is_closed_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut guests = Box::pin(guests(listener, Limits { connections_per_address_max: 1, ..LIMITS }));
        let (first, guest) = tokio::join!(TcpStream::connect(address), guests.next());
        let guest = guest.unwrap().unwrap();
        assert!(guest.stream.nodelay().unwrap());
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        let closed = async {
            tokio::select! {
                read = second.read(&mut byte) => read,
                _ = guests.next() => panic!("it is not let in"),
            }
        };
        assert_eq!(closed.await.unwrap_or(0), 0);
        drop((first, guest));
        let (_third, guest) = tokio::join!(TcpStream::connect(address), guests.next());
        guest.unwrap().unwrap();
    }
}
