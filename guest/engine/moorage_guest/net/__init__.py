"""Networks of containers: addresses, links, firewall, published ports and names."""
