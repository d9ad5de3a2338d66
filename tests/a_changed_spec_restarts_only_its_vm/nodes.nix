# One host, so that a VM whose processes changed was restarted and not moved.
{ cluster }:
cluster {
  hosts.alpha = { };
  vms = {
    db = { };
    web = { };
  };
}
