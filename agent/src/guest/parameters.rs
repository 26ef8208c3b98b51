//! What the kernel's command line says to init. `roost.guest` writes it; nobody else can.

use std::net::Ipv4Addr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub address: Ipv4Addr,
    pub prefix: u32,
}

/// A disk of its own, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub device: String,
    pub read_only: bool,
    pub path: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The block device of the root file system.
    pub root: String,
    /// The block device of this kernel's `/lib/modules`; empty where there is none.
    pub modules: String,
    pub volumes: Vec<Volume>,
    /// Of eth0; without one it stays down.
    pub address: Option<Address>,
    pub gateway: Option<Ipv4Addr>,
    /// For /etc/resolv.conf.
    pub nameserver: Option<Ipv4Addr>,
}

impl Parameters {
    pub fn parse(line: &str) -> Result<Parameters, String> {
        let mut parsed = Parameters::default();
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let address = || {
                value
                    .parse()
                    .map_err(|_| format!("{word:?} is not an address"))
            };
            match name {
                "root" => value.clone_into(&mut parsed.root),
                "roost.modules" => value.clone_into(&mut parsed.modules),
                "roost.volume" => parsed.volumes.push(volume(value)?),
                "roost.address" => parsed.address = Some(with_prefix(value)?),
                "roost.gateway" => parsed.gateway = Some(address()?),
                "roost.nameserver" => parsed.nameserver = Some(address()?),
                _ => {}
            }
        }
        match parsed.root.starts_with("/dev/") {
            true => Ok(parsed),
            false => Err("the kernel's command line has no root=/dev/...".to_owned()),
        }
    }
}

/// `DEVICE:ro|rw:PATH`.
fn volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.splitn(3, ':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(device), Some(mode @ ("ro" | "rw")), Some(path))
            if device.starts_with("/dev/") && path.starts_with('/') =>
        {
            Ok(Volume {
                device: device.to_owned(),
                read_only: mode == "ro",
                path: path.to_owned(),
            })
        }
        _ => Err(format!("{text:?} is not a volume")),
    }
}

fn with_prefix(text: &str) -> Result<Address, String> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        Some(Address {
            address: address.parse().ok()?,
            prefix: prefix.parse().ok().filter(|&prefix| prefix <= 32)?,
        })
    });
    parsed.ok_or_else(|| format!("{text:?} is not an address with a prefix"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_and_leaves_the_rest() {
        let line = "quiet console=ttyS0 root=/dev/vda rw roost.modules=/dev/vdb panic=-1 \
                    roost.address=10.0.0.2/30 roost.gateway=10.0.0.1 roost.nameserver=10.0.0.1\n";
        let parsed = Parameters::parse(line).expect("parsed");
        assert_eq!(parsed.root, "/dev/vda");
        assert_eq!(parsed.modules, "/dev/vdb");
        assert_eq!(parsed.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(parsed.volumes, []);
        let address = parsed.address.expect("an address");
        assert_eq!(
            (address.address, address.prefix),
            (Ipv4Addr::new(10, 0, 0, 2), 30)
        );
    }

    #[test]
    fn reads_volumes_in_their_order() {
        let line = "root=/dev/vda roost.volume=/dev/vdc:rw:/data roost.volume=/dev/vdd:ro:/a/b.c";
        let parsed = Parameters::parse(line).expect("parsed");
        let shown: Vec<_> = parsed
            .volumes
            .iter()
            .map(|each| (each.device.as_str(), each.read_only, each.path.as_str()))
            .collect();
        assert_eq!(
            shown,
            [("/dev/vdc", false, "/data"), ("/dev/vdd", true, "/a/b.c")]
        );
        for bad in ["/dev/vdc:rw", "/dev/vdc:xx:/data", "vdc:rw:/data", "/dev/vdc:rw:data", ""] {
            assert!(Parameters::parse(&format!("root=/dev/vda roost.volume={bad}")).is_err());
        }
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        for line in [
            "quiet",
            "root=UUID=1",
            "root=/dev/vda roost.address=10.0.0.2",
        ] {
            assert!(Parameters::parse(line).is_err(), "{line}");
        }
        for address in ["10.0.0.2/33", "10.0.0/8", "/8"] {
            assert!(Parameters::parse(&format!("root=/dev/vda roost.address={address}")).is_err());
        }
    }
}
