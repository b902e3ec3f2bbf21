//! How many connections each address has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of all addresses.
#[derive(Clone)]
pub struct Connections {
    /// Of one address at most.
    most: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection, until it is dropped.
pub struct Connected {
    connections: Connections,
    address: IpAddr,
}

impl Connections {
    /// None are open, and at most `most` of one address will be.
    pub fn new(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one in, unless its address has too many.
    pub fn connect(&self, address: IpAddr) -> Option<Connected> {
        let address = of_one_client(address);
        let mut open = self.open();
        let count = open.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Connected { connections: self.clone(), address })
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// In IPv6 one client has all addresses of a network of 64 bits.
fn of_one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an address that has all its connections gets no more until one is closed, others do, and nothing is
    /// kept of addresses that are gone.
    #[test]
    fn each_address_has_so_many_connections_and_no_more() {
        let connections = Connections::new(2);
        let connect = |address: &str| connections.connect(address.parse().unwrap());
        let (first, second) = (connect("10.0.0.1"), connect("::ffff:10.0.0.1"));
        assert!(first.is_some() && second.is_some() && connect("10.0.0.1").is_none());
        let network = [connect("2001:db8::1"), connect("2001:db8::2:0:0:1")];
        assert!(network.iter().all(Option::is_some) && connect("2001:db8::3").is_none());
        assert!(connect("2001:db8:0:1::1").is_some());
        drop(first);
        let third = connect("10.0.0.1");
        assert!(third.is_some() && connect("10.0.0.1").is_none());
        drop((second, third, network));
        assert!(connections.open().is_empty());
    }
}
