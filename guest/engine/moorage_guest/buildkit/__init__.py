"""BuildKit's wire: gRPC with clients that build (`/grpc`) and with what they offer a build (`/session`).

What a Dockerfile means and how it is carried out is `moorage_guest.images.build`'s. Nothing here is imported before a client asks.
"""
