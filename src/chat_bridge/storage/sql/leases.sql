-- name: take_lease
-- Take or renew a lease: it is ours, nobody's, or its owner has let it run out.
insert into leases as l (name, owner, lease_until)
values ($1, $2, clock_timestamp() + $3::interval)
on conflict (name) do update set owner = excluded.owner, lease_until = excluded.lease_until
where l.owner = excluded.owner or l.lease_until < clock_timestamp()
returning l.name;

-- name: release_lease
-- Give a lease back, so that another process need not wait until it runs out.
delete from leases where name = $1 and owner = $2 returning name;
