{
  imports = [ ./common.nix ];
  networking.hostName = "alpha";
  networking.interfaces.br0.ipv4.addresses = [
    {
      address = "10.0.0.1";
      prefixLength = 24;
    }
  ];
  services.blixard.settings.node.labels.rack = "1";
}
