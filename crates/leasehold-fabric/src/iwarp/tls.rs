//! TLS 1.3 (RFC 8446) below MPA, between our own two ends.
//!
//! The end that listens has a key pair of its own, made when it starts, and shows the public half as it is (RFC 7250). The
//! end that connects was told it over the control plane, which it trusts already, and takes no other: no certificate, name
//! or authority has to fit. Who connects is known by the token in its MPA request, as without TLS.
//!
//! ```text
//! frames --> encrypted (the one copy) --> socket       socket --> record, authenticated --> exposed memory, or staging
//! ```
//! Invariant: what [`Tls::read`] gives was authenticated before. So not even one byte that somebody on the way has changed
//! is placed. (The kernel's TLS decrypts into the memory that it is given, and checks the record afterwards.)

use super::tcp::Tcp;
use bytes::Bytes;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, ServerConfig,
    ServerConnection, SignatureScheme,
};
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

/// The first byte of a connection that begins with TLS (RFC 8446 section 5.1). A set-up frame begins with an M.
pub(super) const HANDSHAKE: u8 = 22;

/// What is read from the socket at a time: two records.
const AHEAD: usize = 32 << 10;

/// By what an end that listens is known: a key pair, for as long as this is kept.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    public_key: Bytes,
}

impl ServerTls {
    /// A new key pair.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn generate() -> io::Result<ServerTls> {
        let no_random_bytes = |_| io::Error::other("the system gives no random bytes");
        let pair = ring::signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new());
        let pair = PrivatePkcs8KeyDer::from(pair.map_err(no_random_bytes)?.as_ref().to_vec());
        let signer = provider::sign::any_eddsa_type(&pair).map_err(io::Error::other)?;
        let public_key = Bytes::from(signer.public_key().expect("an Ed25519 key has one").to_vec());
        let shown = CertifiedKey::new(vec![CertificateDer::from(public_key.to_vec())], signer);
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(shown));
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        // Every connection begins anew: it has a new token to show.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls { config: Arc::new(config), public_key })
    }

    /// What a peer has to know: a SubjectPublicKeyInfo in DER (RFC 5280 section 4.1).
    #[must_use]
    pub fn public_key(&self) -> &Bytes {
        &self.public_key
    }

    pub(super) fn accept(&self) -> Result<Connection, rustls::Error> {
        Ok(ServerConnection::new(self.config.clone())?.into())
    }
}

/// TLS to the one that has this public key.
pub(super) fn client(public_key: Bytes, address: SocketAddr) -> Result<ClientConnection, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Only { public_key, provider: crypto() }))
        .with_no_client_auth();
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    // Nobody looks at the name.
    ClientConnection::new(Arc::new(config), ServerName::from(address.ip()))
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// Takes one public key and no other.
#[derive(Debug)]
struct Only {
    public_key: Bytes,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match shown.as_ref() == self.public_key {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("only TLS 1.3 is offered")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// TLS on one connection. Whoever sends and the worker that receives take turns: neither keeps it while it waits.
pub(super) struct Tls(Mutex<Session>);

struct Session {
    connection: Connection,
    ahead: BufReader<Tcp>,
    /// What came is no TLS of the peer's: nothing behind it is looked at.
    failed: Option<rustls::Error>,
}

impl Tls {
    pub(super) fn new(mut connection: Connection, tcp: Tcp) -> Tls {
        // The sender bounds what it hands over, and waits until it is gone.
        connection.set_buffer_limit(None);
        let ahead = BufReader::with_capacity(AHEAD, tcp);
        Tls(Mutex::new(Session { connection, ahead, failed: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.0.lock().expect("no code panics while it holds the session")
    }

    /// As [`Stream::read`](super::stream::Stream::read).
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn read(&self, memory: (*mut u8, usize), staging: &mut [u8]) -> io::Result<usize> {
        let mut session = self.lock();
        let mut got = 0;
        loop {
            let mut reader = session.connection.reader();
            let ready = match reader.fill_buf() {
                Ok(ready) => ready,
                Err(error) if error.kind() == ErrorKind::WouldBlock => match session.pull() {
                    Ok(()) => continue,
                    Err(error) => return if got > 0 { Ok(got) } else { Err(error) },
                },
                Err(error) => return if got > 0 { Ok(got) } else { Err(error) },
            };
            let taken = if got < memory.1 {
                let taken = ready.len().min(memory.1 - got);
                // SAFETY: within the memory, which is valid for writes by this function's contract, and which nobody else
                // touches; what the session has decrypted is no part of it.
                unsafe { std::ptr::copy_nonoverlapping(ready.as_ptr(), memory.0.add(got), taken) };
                taken
            } else {
                let room = &mut staging[got - memory.1..];
                let taken = ready.len().min(room.len());
                room[..taken].copy_from_slice(&ready[..taken]);
                taken
            };
            if taken == 0 {
                return Ok(got); // no room is left, or the stream has ended
            }
            reader.consume(taken);
            got += taken;
        }
    }

    /// Encrypts all of it, and sends what the socket takes; [`Tls::flush`] sends the rest. Refers to nothing afterwards.
    pub(super) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.lock();
        let taken = session.connection.writer().write_vectored(parts)?;
        match session.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Sends what is left. `WouldBlock`: the socket takes no more now.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.lock().flush()
    }

    /// Nothing more will be sent: says so, behind what was.
    pub(super) fn close(&self) {
        let mut session = self.lock();
        session.connection.send_close_notify();
        // What is left goes with the next flush.
        let _ = session.flush();
    }
}

impl Session {
    /// Reads from the socket, and decrypts. `WouldBlock`: nothing is there.
    fn pull(&mut self) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(io::Error::new(ErrorKind::InvalidData, error.clone()));
        }
        // What the handshake has to say, if the socket did not take it at once.
        self.answer()?;
        self.connection.read_tls(&mut self.ahead)?;
        self.failed = self.connection.process_new_packets().err();
        // Also the alert that says what is wrong.
        let answered = self.answer();
        match &self.failed {
            Some(error) => Err(io::Error::new(ErrorKind::InvalidData, error.clone())),
            None => answered,
        }
    }

    fn answer(&mut self) -> io::Result<()> {
        match self.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            answered => answered,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.ahead.get_ref()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => drop(written?),
            }
        }
        Ok(())
    }
}
