//! The loopback and eth0, with one address, as in every machine: a restored sibling keeps it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use super::parameters::{Address, Parameters};

const LOOPBACK: &str = "lo";
const INTERFACE: &str = "eth0";
const RESOLVER: &str = "/etc/resolv.conf";

pub fn up(parameters: &Parameters) -> Result<(), String> {
    let socket = socket().map_err(|error| format!("network: {error}"))?;
    raise(&socket, LOOPBACK).map_err(|error| format!("{LOOPBACK}: {error}"))?;
    if let Some(address) = parameters.address {
        configure(&socket, address, parameters.gateway)
            .map_err(|error| format!("{INTERFACE}: {error}"))?;
    }
    if let Some(nameserver) = parameters.nameserver {
        // An image's own may be a link to where nothing will ever write.
        let text = format!("nameserver {nameserver}\noptions timeout:2 attempts:3\n");
        let _ = fs::remove_file(RESOLVER);
        let written = fs::write(RESOLVER, text)
            .and_then(|()| fs::set_permissions(RESOLVER, fs::Permissions::from_mode(0o644)));
        if let Err(error) = written {
            eprintln!("roost-agent: {RESOLVER}: {error}");
        }
    }
    Ok(())
}

fn configure(socket: &OwnedFd, address: Address, gateway: Option<Ipv4Addr>) -> io::Result<()> {
    let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - address.prefix).unwrap_or(0));
    assign(socket, libc::SIOCSIFADDR, address.address)?;
    assign(socket, libc::SIOCSIFNETMASK, mask)?;
    raise(socket, INTERFACE)?;
    gateway.map_or(Ok(()), |gateway| route(socket, gateway))
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: a new descriptor that nothing else owns.
    unsafe {
        match libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data, and this is what the type is for.
    unsafe { std::mem::transmute(address) }
}

/// `argument` is what the call takes.
fn control<T>(socket: &OwnedFd, call: libc::c_ulong, argument: &T) -> io::Result<()> {
    // SAFETY: each caller pairs a call with the type that it reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), call as _, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn assign(socket: &OwnedFd, call: libc::c_ulong, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(INTERFACE);
    request.ifr_ifru.ifru_addr = internet(address);
    control(socket, call, &request)
}

fn raise(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    control(socket, libc::SIOCSIFFLAGS, &request)
}

/// The default route.
fn route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all zeroes is a valid rtentry.
    let mut entry: libc::rtentry = unsafe { std::mem::zeroed() };
    entry.rt_dst = internet(Ipv4Addr::UNSPECIFIED);
    entry.rt_genmask = internet(Ipv4Addr::UNSPECIFIED);
    entry.rt_gateway = internet(gateway);
    entry.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    control(socket, libc::SIOCADDRT, &entry)
}
