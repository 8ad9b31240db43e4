//! What the tests of the emulated network share.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)] // each test file uses its part

use std::{io::IoSliceMut, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    AsyncUdpSocket,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    udp::{RecvMeta, Transmit},
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tradewind_host::Host;
use tradewind_wan::WanHost;

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub const fn us(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// The host as the rest of Tradewind sees it.
pub fn seen(host: &Arc<WanHost>) -> Arc<dyn Host> {
    host.clone()
}

pub fn bind(host: &WanHost) -> Arc<dyn AsyncUdpSocket> {
    host.bind_udp(SocketAddr::new(host.ip(), 0)).unwrap()
}

pub fn send(from: &dyn AsyncUdpSocket, to: &dyn AsyncUdpSocket, contents: &[u8]) {
    send_to(from, to.local_addr().unwrap(), contents);
}

pub fn send_to(from: &dyn AsyncUdpSocket, destination: SocketAddr, contents: &[u8]) {
    let transmit = Transmit {
        destination,
        ecn: None,
        contents,
        segment_size: None,
        src_ip: None,
    };
    from.try_send(&transmit).unwrap();
}

/// The next buffer of a socket: source, and the datagrams in it.
pub async fn receive(socket: &dyn AsyncUdpSocket) -> (RecvMeta, Vec<Vec<u8>>) {
    let mut buffer = vec![0; 65_536];
    let mut meta = [RecvMeta::default()];
    let filled = std::future::poll_fn(|cx| {
        socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)
    })
    .await
    .unwrap();
    assert_eq!(filled, 1);
    let datagrams = match meta[0].len {
        0 => vec![Vec::new()],
        len => buffer[..len]
            .chunks(meta[0].stride)
            .map(<[u8]>::to_vec)
            .collect(),
    };
    (meta[0], datagrams)
}

/// Everything that is in a socket's inbox by now.
pub async fn drain(socket: &dyn AsyncUdpSocket) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut receiving = Box::pin(receive(socket));
    loop {
        let ready = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match std::future::Future::poll(receiving.as_mut(), cx) {
                std::task::Poll::Ready((_, datagrams)) => Some(datagrams),
                std::task::Poll::Pending => None,
            })
        })
        .await;
        let Some(datagrams) = ready else { return all };
        all.extend(datagrams);
        receiving = Box::pin(receive(socket));
    }
}

/// QUIC configurations with an Ed25519 certificate, whose signatures always have the same length.
pub fn quic_configs() -> (quinn::ServerConfig, quinn::ClientConfig) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["wan.test".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let der = CertificateDer::from(certificate.der().to_vec());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![der.clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    server.alpn_protocols = vec![b"test".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"test".to_vec()];
    let server = QuicServerConfig::try_from(server).unwrap();
    let client = QuicClientConfig::try_from(client).unwrap();
    (
        quinn::ServerConfig::with_crypto(Arc::new(server)),
        quinn::ClientConfig::new(Arc::new(client)),
    )
}

/// Answers every bidirectional stream with what came over it, on every connection.
pub fn serve_echo(host: Arc<dyn Host>, endpoint: quinn::Endpoint) {
    let spawner = host.clone();
    host.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else {
                continue;
            };
            spawner.spawn(async move {
                while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                    let Ok(bytes) = receive.read_to_end(1 << 20).await else {
                        return;
                    };
                    if send.write_all(&bytes).await.is_err() || send.finish().is_err() {
                        return;
                    }
                }
            });
        }
    });
}

pub async fn echo(connection: &quinn::Connection, bytes: &[u8]) -> Vec<u8> {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    receive.read_to_end(1 << 20).await.unwrap()
}
