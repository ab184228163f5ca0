//! A forward proxy on this machine: HTTP's `CONNECT`, by which clients reach any host through it.

use std::io::{BufRead, BufReader, Result, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A running proxy. It ends with the process.
pub struct Proxy {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts one on a free port; `password` is what it wants in `Proxy-Authorization`.
    pub fn start(password: Option<&'static str>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hosts = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hosts = Arc::clone(&hosts);
                thread::spawn(move || {
                    // A side that leaves ends the tunnel.
                    let _ = tunnel(stream, password, &hosts);
                });
            }
        });
        Self { url, seen }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Takes the hosts that tunnels were opened to so far.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn tunnel(mut client: TcpStream, password: Option<&str>, hosts: &Mutex<Vec<String>>) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let host = lines.first().and_then(|l| l.strip_prefix("CONNECT ")?.split(' ').next());
    let Some(host) = host else { return client.write_all(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n") };
    let is_allowed = |line: &String| {
        let (name, value) = line.split_once(':').unwrap_or_default();
        name.eq_ignore_ascii_case("proxy-authorization") && Some(value.trim()) == password
    };
    if password.is_some() && !lines.iter().any(is_allowed) {
        return client.write_all(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n");
    }
    hosts.lock().unwrap().push(host.to_owned());
    let mut server = TcpStream::connect(host)?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut to_client, mut from_server) = (client.try_clone()?, server.try_clone()?);
    let back = thread::spawn(move || {
        let _ = copy(&mut from_server, &mut to_client);
        to_client.shutdown(Shutdown::Both)
    });
    copy(&mut reader, &mut server)?;
    server.shutdown(Shutdown::Write)?;
    // What has not come back by then does not come.
    let _ = back.join();
    Ok(())
}
