//! The token: every call must carry it, and a serial dial proves it before it is answered.

use std::sync::{Arc, RwLock};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tonic::service::Interceptor;
use tonic::{Request, Status};

const DIAL: &[u8] = b"roost-dial-v1";

/// The current token. RenewIdentity changes it for everyone at once.
#[derive(Clone)]
pub struct Token(Arc<RwLock<Vec<u8>>>);

impl Token {
    pub fn new(token: Vec<u8>) -> Token {
        Token(Arc::new(RwLock::new(token)))
    }

    pub fn replace(&self, token: Vec<u8>) {
        *self
            .0
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = token;
    }

    fn with<T>(&self, use_it: impl FnOnce(&[u8]) -> T) -> T {
        use_it(
            &self
                .0
                .read()
                .unwrap_or_else(|poisoned| poisoned.into_inner()),
        )
    }

    pub fn matches(&self, offered: &[u8]) -> bool {
        self.with(|token| token.ct_eq(offered).into())
    }

    fn mac(&self, message: &[u8]) -> [u8; 32] {
        self.with(|token| {
            // HMAC takes a key of any length.
            let mut mac = match <Hmac<Sha256> as KeyInit>::new_from_slice(token) {
                Ok(mac) => mac,
                Err(_) => unreachable!("HMAC keys have no length limit"),
            };
            mac.update(message);
            mac.finalize().into_bytes().into()
        })
    }

    /// What a dial on a byte stream begins with.
    pub fn preamble(&self) -> [u8; 32] {
        self.mac(DIAL)
    }

    /// What the agent answers to it.
    pub fn echo(&self, nonce: &[u8; 16]) -> [u8; 48] {
        let mut echo = [0; 48];
        echo[..16].copy_from_slice(nonce);
        echo[16..].copy_from_slice(&self.mac(nonce));
        echo
    }
}

impl Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let offered = request
            .metadata()
            .get("authorization")
            .map(|value| value.as_bytes());
        match offered.and_then(|value| value.strip_prefix(b"Bearer ")) {
            Some(offered) if self.matches(offered) => Ok(request),
            _ => Err(Status::unauthenticated("the token is missing or wrong")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn hmac_is_the_standard_one() {
        // Python: hmac.new(b"secret", b"roost-dial-v1", "sha256").hexdigest()
        let preamble = hex(&Token::new(b"secret".to_vec()).preamble());
        assert_eq!(
            preamble,
            "8ed599b5639e9a27e2362356a799fceb40455658eff1e4d53284ae7f28005bb6"
        );
    }

    #[test]
    fn only_the_whole_token_matches() {
        let token = Token::new(b"secret".to_vec());
        assert!(token.matches(b"secret"));
        for wrong in [b"secre".as_slice(), b"secret1", b"", b"Secret"] {
            assert!(!token.matches(wrong));
        }
        token.replace(b"other".to_vec());
        assert!(!token.matches(b"secret"));
        assert!(token.matches(b"other"));
    }
}
