//! Encrypted connections.

use crate::common::{options, start};
use bitnet_inference::engine::EngineOptions;
use bitnet_server::{ServeOptions, Tls, TlsError};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

#[test]
fn whoever_trusts_the_certificate_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let [cert, key, empty] = ["cert.pem", "key.pem", "empty.pem"].map(|name| folder.path().join(name));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&empty, "").unwrap();

    assert!(matches!(Tls::from_files(&folder.path().join("absent"), &key), Err(TlsError::Pem { .. })));
    assert!(matches!(Tls::from_files(&empty, &key), Err(TlsError::NoCertificate { .. })));
    assert!(matches!(Tls::from_files(&cert, &cert), Err(TlsError::Pem { .. })));
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&empty, other.signing_key.serialize_pem()).unwrap();
    assert!(matches!(Tls::from_files(&cert, &empty), Err(TlsError::Unusable(_))));

    let tls = Some(Tls::from_files(&cert, &key).unwrap());
    let (running, client) = start(ServeOptions { tls, ..options() }, EngineOptions::default());
    assert_eq!(running.scheme(), "https");
    // One that says nothing, and one that speaks no TLS, keep nobody waiting.
    let _silent = TcpStream::connect(client.address).unwrap();
    let mut plain = TcpStream::connect(client.address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut reply = Vec::new();
    let _ = plain.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP"), "nothing is answered in the clear");

    let get = |roots: RootCertStore| -> std::io::Result<String> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(client.address)?);
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(made.cert.der().to_vec())).unwrap();
    let reply = get(roots).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("tiny"), "{reply}");
    assert!(get(RootCertStore::empty()).is_err());
}
