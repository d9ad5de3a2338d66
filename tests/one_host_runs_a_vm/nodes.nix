{ cluster }:
cluster {
  hosts.alpha = { };
  vms.web = { };
}
